"""The source `ms://`: a model repository of ModelScope, or of a site that speaks its API.

Law: one list has all files with their sha256, or is refused; the token goes to the site only.
"""
