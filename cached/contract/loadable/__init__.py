"""Whether an engine can load a version, judged by the names of its files, their first bytes and their headers.

Law: the standard library only. Reads are bounded and go through the caller's function; nothing here opens a file. Only
what is certainly wrong is a finding: a file of an unknown format is left alone.
"""
