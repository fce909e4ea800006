"""Bytes and connections: bounds on what comes in, keys, room, bodies as JSON, and answers on their way out."""
