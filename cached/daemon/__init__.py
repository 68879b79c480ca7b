"""The daemon: wires the rooms together, reconciles wants with the inventory, and answers on its listeners.

Law: only `wiring` knows every part. The listeners translate; the reconciler decides through `core` and carries out.
"""
