"""The file system under the store: durable steps, fs-verity, the root's lock, the checks at the start.

Law: blocking calls; knows paths and file descriptors, not blobs or snapshots.
"""
