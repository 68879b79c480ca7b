"""The sources `git+https://` and `git+http://`: a commit of a Git repository, its large files in Git LFS.

Law: everything is of one commit, and nothing is written to a disk; a file of Git is checked by its id, a file in Git
LFS by its sha256. Neither git nor git-lfs is needed.
"""
