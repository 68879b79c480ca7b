"""The source `az://`: Azure Blob Storage over its REST API.

Law: every read of a listed blob has its ETag as a condition; no library of Azure's is needed, and no secret is shown.
"""
