"""Tools that a model may call: what a request says of them, and how models write their calls."""
