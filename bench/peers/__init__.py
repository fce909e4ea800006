"""Compares this server with others that pip can install: the same weights, requests and machine, in one run."""
