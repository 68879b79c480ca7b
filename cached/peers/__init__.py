"""Decide how nodes pass one version's pieces on: who is asked for which piece, who fetches which from the origin.

Law: pure, no I/O, but in `serving/`: the clock and the random generator are arguments, so that the simulation of
`bench/fleet.py` runs these same decisions. What other nodes say is bounded and never trusted: only a checked piece
counts.
"""
