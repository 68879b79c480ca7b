"""Fetch versions: a version fetch has downloads, a download has attempts, an attempt has segments that workers receive.

Law: only verified blobs are committed; space is reserved before a byte is written.
"""
