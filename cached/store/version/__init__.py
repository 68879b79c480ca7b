"""Versions of committed blobs: snapshots, their names and records; how they are published, repaired and deleted.

Law: blocking calls on files; a snapshot is made of links to blobs, and a name is the last step.
"""
