"""Runs a model's layers on a CPU: native decoder layers, packed linear layers, and row-by-row arithmetic."""
