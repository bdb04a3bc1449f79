"""Inference: greedy answers and answer probabilities of a vision-language model (`predict`)."""
