"""Mirrors server/tracing/."""
