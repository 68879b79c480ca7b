"""The resolver `dvc+https://`, `dvc+file://`: what DVC tracks in a repository.

Law: reads DVC's own files of one commit, and ends in the remote that they name; each file's md5 is its promise. DVC
itself is not needed.
"""
