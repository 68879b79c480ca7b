"""Fetch versions: a version fetch has downloads, a download has attempts, an attempt has segments that workers receive.

Law: a blob leaves here verified, or not at all; space is reserved before a byte is written.
"""
