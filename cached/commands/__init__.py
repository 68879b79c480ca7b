"""The commands that people type: pull, ls, status, verify, gc, pin, unpin.

Law: standard library and the contract only, so that a command starts at once. They read the public tree; what changes
anything is asked of the daemon, through its socket.
"""
