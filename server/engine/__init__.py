"""A loaded model and its thread: turns requests into tokens and vectors.

Law: torch and transformers are used here and in `weights` only; no HTTP, and no disk outside the model's folder.
"""
