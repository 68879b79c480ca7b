"""The resolver `sagemaker:`: model packages of Amazon SageMaker's model registry.

Law: asks for the newest approved version of a group once, and ends in S3. Only botocore is needed, as for S3.
"""
