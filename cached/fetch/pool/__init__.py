"""Fetch with the other nodes of a pool: this node's part in it.

Law: the decisions are `cached/peers`; here are its threads, its requests to other nodes and its table of versions.
Nothing here ends a download: without help the origin has everything.
"""
