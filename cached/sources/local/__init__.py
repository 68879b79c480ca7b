"""The source `file://`: a folder that this machine can read."""
