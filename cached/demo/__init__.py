"""`holdfast demo`: the whole path on this machine, with a real model, as the separate processes it consists of.

Law: start the commands a person would type, use their ports, files and socket, fake nothing, leave nothing behind.
"""
