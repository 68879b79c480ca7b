"""Common parts of all Holdfast programs. Of the process: its start and end, its limits, its threads, its pod.
What it reads and writes: options, units, output, progress, log, traces, termination log, TLS identity.

Law: standard library only, but for `tracing.py`, which imports OpenTelemetry where a program is asked for traces; knows
no models.
"""
