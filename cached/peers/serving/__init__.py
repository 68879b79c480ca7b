"""Serve other nodes of the pool: ranges of committed blobs, and manifests, over HTTP.

Law: blocking sockets in threads of their own; reads the store and changes nothing. A client without the pool's key
does not learn what is here. Requests, connections, waits and rates are bounded.
"""
