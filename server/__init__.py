"""The HTTP side: FastAPI app, OpenAI protocol, SSE, keys, limits, metrics and the command line.

It knows requests and text. Tensors, and torch with them, stay in the engine's process.
"""

import time

STARTED_AT = time.monotonic()  # a command imports this package before all else
