"""Weights from safetensors files onto the CPU or straight onto a GPU.

Law: reads files and never writes, downloads or runs anything. Each module is one noun; importing this package imports
none of them, and nothing here imports the rest of the server but `server.safetensors` and `server.gpu`.
"""
