"""The node's daemon, its commands, and what publishes versions.

Rooms, lower ones first; a room imports only from those below it (`pyproject.toml`, import-linter): `contract`, `core`,
`transport` and `store`, `sources`, `node`, `fetch`, `kube` and `publish`, `daemon`; `commands` and `demo` reach a
daemon through its sockets only.
"""
