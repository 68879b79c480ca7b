"""Which files of a listing belong to a version, and which are left out and why.

Law: pure. First the entry's own globs (`core/filters.py`), then clutter, then copies of the same weights. Every file
that is left out has a reason, and a way to have it.
"""
