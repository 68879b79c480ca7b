"""The source `gs://`: Google Cloud Storage over its JSON API.

Law: every read names the generation that was listed; no library of Google's is needed, and no secret is shown.
"""
