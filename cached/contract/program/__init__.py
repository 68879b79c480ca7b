"""Common parts of all Holdfast programs: options, units, output, log, traces, signals, process limits, TLS identity.

Law: standard library only, but for `tracing.py`, which imports OpenTelemetry where a program is asked for traces; knows
no models.
"""
