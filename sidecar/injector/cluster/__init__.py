"""What the injector asks the API server, and keeps there for others.

Law: each part keeps up one thing, and tries again by itself; reviews never wait for it.
"""
