"""What a caller holds: engines as streams on an event loop (`AsyncEngine`), or one driven in place (`LLM`).

Joins admission, supervision and text; owns the requests in flight as their readers see them. HTTP is unknown here.
"""
