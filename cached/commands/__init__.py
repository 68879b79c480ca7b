"""The commands that people type: pull, ls, status, why, inspect, verify, gc, pin, unpin, golden.

Law: standard library and the contract only, so that a command starts fast; `shared/bars.py` loads rich once it draws.
They read the public tree, and `golden` a server's HTTP API; every change goes through the daemon's control socket.
"""
