"""The source `file://`: a folder that this machine can read.

Law: opens only the manifest, writes nothing, and never leaves the folder.
"""
