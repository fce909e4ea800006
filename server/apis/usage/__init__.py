"""GET /v1/usage: what each named key has used, for an administrator."""
