"""The engine's scheduling on a virtual clock: a load over minutes takes seconds, and no model."""
