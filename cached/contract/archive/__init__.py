"""What an archive is: the tar format, and the stream in which one goes to the daemon.

Law: standard library only; no files of the store.
"""
