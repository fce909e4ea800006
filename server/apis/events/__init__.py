"""GET /events: what the page at / shows, as server-sent events, for as long as somebody watches."""
