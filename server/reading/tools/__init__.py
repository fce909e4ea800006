"""Tools: what a request says of them, how models write calls of them, and the grammars that make a model call them."""
