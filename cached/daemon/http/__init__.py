"""The daemon's HTTP server: reads requests, calls a handler for each, and limits its clients.

Law: standard library only. A start pays for what it imports, and a library for web applications costs it a quarter of a
second of processor time and 14 MiB, for six paths.
"""
