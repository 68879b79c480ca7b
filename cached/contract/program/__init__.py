"""What every program of Holdfast shares: options, units, output, signals, and the limits of a process.

Law: standard library only; knows nothing of models.
"""
