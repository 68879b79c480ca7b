"""The source `s3://`, and the parts that publishing to S3 shares with it: addresses, clients, errors.

Law: only this package and `cached.publish.s3` import botocore and aiobotocore.
"""
