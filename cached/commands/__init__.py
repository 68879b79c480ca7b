"""The commands that people type: pull, ls, status, verify, gc, pin, unpin.

Law: standard library and the contract only, so that a command starts fast. They read the public tree; every change goes
through the daemon's control socket.
"""
