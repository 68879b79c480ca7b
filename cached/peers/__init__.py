"""Decide how nodes pass one version's pieces on: who is asked for which piece, who fetches which from the origin.

Law: pure, no I/O: the clock and the random generator are arguments. The daemon and the simulation of `bench/fleet.py`
run these same decisions. What other nodes say is bounded and never trusted: only a checked piece counts.
"""
