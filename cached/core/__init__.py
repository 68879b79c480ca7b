"""Decisions: the demand, the files of a version, the next fetches, evictions, disk space.

Law: no I/O, no asyncio, no network. Values in, values out; a clock is a parameter.
"""
