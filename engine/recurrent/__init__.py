"""Layers that keep a state for each sequence in place of keys and values: convolutions, delta rules, state spaces."""
