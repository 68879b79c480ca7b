"""The gate: blocks until a version is present and verified, then holds its lease.

Law: the standard library and watchdog; small and quick to start, as every pod pays for it.
"""
