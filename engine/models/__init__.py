"""transformers' models: loading one, and running it as tokens to hidden states to logits."""
