"""The way to a GPU: the CUDA runtime by ctypes, staging rings, copies, and which route a file takes.

Law: imported only where a GPU is asked for.
"""
