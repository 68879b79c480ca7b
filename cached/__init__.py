"""The node's daemon, its commands, and what publishes versions.

Law: a docstring only, so that the gate's imports stay small. Rooms, lower ones first; a room imports only from those
below it (`pyproject.toml`, import-linter): `contract`, `core`, `transport` and `store`, `sources`, `node` and `peers`,
`fetch`, `csi`, `kube` and `publish`, `commands` and `daemon`; then `archive`, `conformance`, `demo`, `doctor` and
`survey`. `commands`, `archive` and `demo` reach a daemon through its sockets only.
"""
