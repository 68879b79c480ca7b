"""What the daemon hears from the cluster and what it tells it: pods of this node, node labels, Events.

Law: the only package that speaks the Kubernetes API. It decides nothing about weights, and whatever the API does, the
rest of the daemon goes on with what it last heard.
"""
