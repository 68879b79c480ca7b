"""The safetensors format: headers, dtypes, shards, and the selection of tensors.

Law: reads headers and indexes, never a tensor's bytes.
"""
