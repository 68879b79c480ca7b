"""Connections: how one is made, kept, limited and cancelled.

Law: blocking sockets and the threads that wait on them; knows no HTTP semantics beyond reading a response's frame.
"""
