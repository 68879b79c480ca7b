"""Common parts of all Holdfast programs: options, units, output, signals, process limits, TLS identity.

Law: standard library only; knows no models.
"""
