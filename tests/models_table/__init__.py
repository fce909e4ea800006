"""What of transformers' model types is served: each made tiny, served, and compared with its own `generate`."""
