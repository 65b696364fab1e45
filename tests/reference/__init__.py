"""Slow float64 loops over Python lists, written from docs/method.md: what the library equals."""
