"""What peers without a server of their own run in: each reads requests, and tells when their tokens came.

A driver runs in its peer's environment, where nothing of this project is installed: it imports the peer, the standard
library and this package alone.
"""
