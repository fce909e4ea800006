"""Processes that run an engine core: starting, watching and replacing them, and the bytes that go to and fro."""
