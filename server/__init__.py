"""The HTTP side: the APIs, the web server around them, and the command line.

A request goes through these from top to bottom:

    http/         connections, layers, routes: bytes in and out
    operations    the table of endpoints
    apis/         a package for each API: its body, and its answer
    requests/     what clients may send, checked
    context       the engine, and the names and limits it is served under
    reading/      content, reasoning and calls of tools in what a model wrote

`app` puts them together and `process/` runs it; `openapi` and `reference` describe it, `metrics` counts and
`exposition/` writes the numbers out. `commands/` has what `cli` can start, `load/` the load generator of `bench`.
Tensors, and torch with them, stay in the engine's process.
"""

import time

STARTED_AT = time.monotonic()  # a command imports this package before all else
