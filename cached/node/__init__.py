"""The node's versions: the inventory, its publisher, status files, scrub, recount, disk watch.

Law: the only package that changes published versions. It calls blocking code through `threads`; the event loop never
waits for a disk.
"""
