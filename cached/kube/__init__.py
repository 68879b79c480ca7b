"""The daemon's view of Kubernetes: it watches this node's pods, and writes node labels and Events.

Law: the only package that uses the Kubernetes API. It decides nothing about weights; while the API does not answer, the
rest of the daemon works with the last known pods and labels.
"""
