"""The content-addressed store, in layers: the start, versions, blobs, the disk.

Law: synchronous, files only, no network.
"""
