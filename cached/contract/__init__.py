"""What daemon, gate and server agree on: names, digests, the layout on disk, leases, errors.

Law: standard library only, and nothing of ours outside this package is imported from here.
"""
