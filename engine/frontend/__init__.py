"""What a caller holds: the engine as streams on an event loop (`AsyncEngine`), or driven in place (`LLM`).

Joins admission, supervision and text; owns the requests in flight as their readers see them. Knows nothing of HTTP.
"""
