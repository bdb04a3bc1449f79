"""Records of runs, the store they lie in, and the tables folded from them."""
