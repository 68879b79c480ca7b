"""The path to a GPU: the CUDA runtime through ctypes, staging rings, copies, and the choice of method.

Law: imported only where a GPU is used.
"""
