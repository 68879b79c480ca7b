"""Bytes that come from elsewhere than an HTTP range.

Law: a body, as `transport/body.py` has it.
"""
