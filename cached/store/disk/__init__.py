"""What the store asks of a file system: durability, fs-verity, the root's lock, and the checks at the start.

Law: blocking calls; knows paths and file descriptors, nothing of blobs or snapshots.
"""
