"""Connections: opening, reuse, limits and cancellation.

Law: blocking sockets and the threads that wait on them; knows no HTTP semantics beyond the framing of a response.
"""
