"""The life of each version of this node: events in, steps out; the reconciler reports events and carries out steps.

Law: as of `core`; the time is handed in, in monotonic seconds. The state of a version is in its record and nowhere
else: what the table and the queue keep beside it are indexes.
"""
