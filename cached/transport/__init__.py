"""Bytes over HTTP, in threads: connections, requests, checked responses, and what bounds them.

Law: blocking calls that a `Cancellation` ends. Knows neither sources nor the store; follows only what a target names.
"""
