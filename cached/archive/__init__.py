"""Versions as tar archives, for clusters without a network: `holdfast export` and `holdfast import`.

Law: standard library, the contract and the control socket's client; a byte is written or handed on only if it is what
the manifest says. The daemon alone changes the store. `docs/design.md`, "Archives", has the format.
"""
