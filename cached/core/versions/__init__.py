"""The life of each version of this node: the reconciler reports events and carries out the steps that follow.

Law: as of `core`; the time is an argument, in monotonic seconds. The state of a version is in its record only: table
and queue hold indexes.
"""
