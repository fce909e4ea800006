"""Tools: what a request says of them, and the formats in which models write calls.

`request` reads `tools` and `tool_choice`. `families` tells formats apart in chat templates, and `formats` has those
that are read here: entries of readers (`tagged_json`, `bare_json`, `xml_calls`, `sections`, `pythonic`, `key_values`,
and others), each of which reads calls and gives the grammar that enforces them. They share `json_calls`, `json_values`,
`argument_values` and `python_literals` (how arguments are written), `call_writer` (the pieces that come out) and `lark`
(the parts of grammars). `traits` has the words for what can be said of a format.
"""
