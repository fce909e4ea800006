"""The demo model: its corpus, its tokenizer, its training and its evaluation.

Nothing here is needed to serve a model; the engine ships only what `demo.train` wrote.
"""
