"""The start index: what recovery found when the store was at rest, so that a start need not read an unchanged tree.

Law: the tree is the truth. The index is believed only where nothing else can be so; a doubt costs a full recovery,
never a start.
"""
