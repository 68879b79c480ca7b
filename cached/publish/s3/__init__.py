"""Publishing to S3: the destination, its mark, and checked reads and writes of objects.

Law: memory is bounded; the server's own sum or the bytes read back prove what is stored, never a value that we sent.
"""
