"""Attention over the paged KV cache: the interface that models call, one module per backend, and the choice of one."""
