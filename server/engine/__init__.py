"""A loaded model and its thread: requests become tokens and vectors.

Law: torch and transformers live here and in `weights`; no HTTP, no asyncio server, no disk beyond the model's folder.
"""
