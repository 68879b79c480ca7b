"""Publishing to S3: the destination, its mark, and checked reads and writes of objects."""
