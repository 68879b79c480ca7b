"""Weights from safetensors files onto the CPU or straight onto a GPU.

Law: reads files and never writes, downloads or runs them; importing this package imports none of its modules, and
nothing here imports the rest of the server.
"""
