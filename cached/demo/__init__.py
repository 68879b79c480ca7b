"""`holdfast demo`: the whole path on this machine, with a real model, as the separate processes it consists of.

Law: start the commands a person would type, talk to them through ports, files and the socket, fake nothing, and leave
nothing behind.
"""
