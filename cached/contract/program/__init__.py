"""Common parts of all Holdfast programs: options, units, output, signals, process limits.

Law: standard library only; knows no models.
"""
