"""Holdfast's loader as a vLLM plugin.

Law: the only room that imports vLLM, and imported by vLLM only.
"""
