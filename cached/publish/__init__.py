"""Publishing: put one folder's files at a destination as one version.

Law: the manifest is written last, and describes only bytes that were uploaded and checked.
"""
