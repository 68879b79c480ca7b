"""The injector: a mutating webhook that adds the gate to annotated pods.

Law: fails closed; knows the API server and the catalog, never a node.
"""
