"""Backbones: which there are (`registry`), how a vision-language model is loaded and used (`vlm`)."""
