"""Blobs: partial ones, committed ones, their digests, and what protects them from deletion.

Law: blocking calls on files; knows blobs by their sha256, and no snapshot or name.
"""
