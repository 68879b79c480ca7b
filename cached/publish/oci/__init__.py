"""Publishing to a registry of OCI artifacts.

Law: a blob is uploaded under its digest, which the registry checks; the tag moves last, in one step, so that there is
no mark.
"""
