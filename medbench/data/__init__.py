"""Task cards, readers (one a layout), and checks of the data behind them."""
