"""HTTP in threads: connections, requests, checked responses, and their limits.

Law: blocking calls that a `Cancellation` ends. Knows neither sources nor the store; requests only what a target names.
"""
