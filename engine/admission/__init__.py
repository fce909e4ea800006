"""Decides whether a request may come in: what the model can serve, the bounded queue, each client's quota."""
