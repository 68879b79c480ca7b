"""The integrity of what is published: hash it again, in the scrub's turn or at once, and have the rest repaired.

Law: reads snapshots and renews their records; only the publisher, through the reconciler, changes anything else.
"""
