"""The start of the store: the recovery of what is there, and the start index, which spares an unchanged tree's reading.

Law: the tree is the truth. The index is believed only where nothing else can be so; a doubt costs a full recovery,
never a start.
"""
