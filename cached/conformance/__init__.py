"""What every source promises, as cases that any test runner may run: ours, and those of other packages' sources.

Law: real sockets and files, and the daemon's own client and downloads; nothing of the daemon imports this. A case says
what was expected and found, and is run or refused by name; none is left out in silence.
"""
