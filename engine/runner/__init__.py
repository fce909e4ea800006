"""Executes a plan: flat tensors in, tokens out. Anything that runs on the device at each step begins here."""
