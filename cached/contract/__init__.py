"""The contract between daemon, gate and server: names, digests, the layout on disk, leases, errors.

Law: standard library only; imports nothing of ours outside this package.
"""
