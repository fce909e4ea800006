"""Tools: what a request says of them, and the formats in which models write calls.

`request` reads `tools` and `tool_choice`. `families` tells formats apart in chat templates, and `formats` has those
that are read here: each reads calls and gives the grammar that enforces them. They share `json_calls`, `json_values`
and `python_literals` (how arguments are written), `call_writer` (the pieces that come out) and `lark` (the parts of
grammars).
"""
