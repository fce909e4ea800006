"""Native kernels: one source, built for several instruction sets, loaded with ctypes, and optional everywhere."""
