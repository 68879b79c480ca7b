"""The source `s3://`, and what publishing to S3 shares with it: addresses, clients, errors.

Law: botocore and aiobotocore appear here and in `cached.publish.s3`, and nowhere else.
"""
