"""Import torch and transformers without what no served model runs.

Law: changes when a library's code runs, never what it computes: whatever is left out is imported at its first use.
"""
