"""Decide: what is wanted, which files belong to it, what is fetched next, what is evicted, what space is left.

Law: no I/O, no asyncio, no network. Values in, values out; the clock is handed in or only compared with.
"""
