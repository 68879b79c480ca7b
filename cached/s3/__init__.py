"""What reading from and publishing to S3 share: addresses, clients, errors.

Law: botocore and aiobotocore appear here, in `cached.sources.s3` and in `cached.uploads.s3`, and nowhere else.
"""
