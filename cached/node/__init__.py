"""What this node holds and says: the inventory, its publisher, status files, scrub, recount, disk watch.

Law: the only room that changes what is published. Threads are entered through `threads`; the event loop never waits for
a disk.
"""
