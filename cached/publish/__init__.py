"""Publishing: put one folder's files at a destination as one version.

Law: the manifest is written last, and never describes bytes other than those that were uploaded and checked.
"""
