"""What the daemon answers, at its TCP port and at its control socket.

Law: reads the service and asks it for changes; decides nothing. `http/` has the protocol.
"""
