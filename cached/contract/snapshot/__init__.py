"""A snapshot as daemon, gate and server see it: its lease, its record, its verification, a doubt about it.

Law: standard library only; files of the public tree, which only the daemon writes, but for locks.
"""
