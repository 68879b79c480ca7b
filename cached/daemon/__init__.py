"""The daemon: wires the rooms together, reconciles what is wanted with what is here, and answers on its sockets.

Law: only `main` knows every part. The sockets translate, the reconciler decides through `core` and carries out.
"""
