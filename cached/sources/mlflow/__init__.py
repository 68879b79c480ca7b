"""The resolver `models:/` and `runs:/`: an MLflow server's registry and runs, over REST.

Law: asks for an alias and a version once; ends in the store that holds the files, and reads them through the server
only where it names no store. No library of MLflow's is needed.
"""
