"""The gate: block until a version is present and verified, then hold its lease.

Law: the standard library and watchdog; small and quick to start, as each pod pays for it.
"""
