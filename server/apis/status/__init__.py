"""GET /live, /ready, /health, /version, /metrics and /: what the server says of itself.

`answer`: all of them; `welcome.html`: the page at /.
"""
