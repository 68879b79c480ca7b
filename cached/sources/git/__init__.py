"""The sources `git+https://` and `git+http://`: a commit of a Git repository, its large files in Git LFS."""
