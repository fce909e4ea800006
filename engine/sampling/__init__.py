"""From logits to tokens: processors, the draw, log-probabilities."""
