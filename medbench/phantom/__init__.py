"""The procedural suite: images and questions from a seed, without any data."""
