"""The sources of weights.

Law: sources resolve, list and sign; they transfer no bulk bytes and do not know each other.
"""
