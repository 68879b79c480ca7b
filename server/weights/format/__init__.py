"""Checkpoints as files say they are: headers, dtypes, shards, and which tensors are chosen.

Law: reads headers and indexes, never a tensor's bytes.
"""
