"""Turns logits into tokens: processors, the draw, log-probabilities."""
