"""Iteration-level scheduling: the queue, the slots, the KV blocks, and what each step computes. Without torch."""
