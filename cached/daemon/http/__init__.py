"""The daemon's HTTP server: h11 reads requests and frames responses; a handler answers each; clients are limited.

Law: asyncio, h11 and the standard library only. A start pays for what it imports: a framework for web applications
costs it a quarter of a second of processor time and 14 MiB, for six paths.
"""
