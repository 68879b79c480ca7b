"""`holdfast demo`: the whole path on this machine, with a real model, as the separate processes it is made of.

Law: starts the same commands a person would type, talks to them through their doors (ports, files, the socket), fakes
nothing, and leaves nothing behind.
"""

from cached.demo.app import main

__all__ = ["main"]
