"""The catalog in force, and whether what is held is what it and its sources have now.

Law: reads the catalog's file and asks sources; what follows from a change is the reconciler's.
"""
