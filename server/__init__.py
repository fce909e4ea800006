"""The HTTP side: FastAPI app, OpenAI protocol, SSE, keys, limits, metrics and the command line.

It knows requests and text. Tensors, and torch with them, stay in the engine's process.
"""
