"""Holdfast's loader as a vLLM plugin.

Law: the only package that imports vLLM, and imported by vLLM only.
"""
