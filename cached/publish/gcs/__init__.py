"""Publish to Google Cloud Storage.

Law: every write has the generation that was seen as its condition, and the service's own sum proves what it stored.
"""
