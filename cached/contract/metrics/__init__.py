"""The metrics that Holdfast's programs expose: one table of names, kinds, help texts, labels and bounds.

Law: standard library only; constants and their text. A program takes each metric from here, so that its name, its help,
its labels and its bound are in one place; `docs/reference/metrics.md` is generated from the same tables.
"""
