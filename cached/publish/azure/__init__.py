"""Publish to Azure Blob Storage.

Law: every block, and every whole blob, is sent with its MD5, which the service compares; a blob appears under a
condition, when it is complete.
"""
