"""Download objects with boto3's transfer manager: `boto3_download.py ENDPOINT BUCKET PREFIX FOLDER NAME…`.

Law: a separate program, so that its CPU time and memory are counted apart from the benchmark's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig

_PART_BYTES = 16 * 1024 * 1024
_THREADS = 10  # boto3's default; several files at once, with more threads, only compete for one interpreter


def main(endpoint: str, bucket: str, prefix: str, folder: str, names: list[str]) -> None:
    """Fetch every `PREFIX/NAME` into `FOLDER/NAME`, each in parallel parts."""
    client = boto3.client("s3", endpoint_url=endpoint)
    config = TransferConfig(
        multipart_threshold=_PART_BYTES,
        multipart_chunksize=_PART_BYTES,
        max_concurrency=_THREADS,
        preferred_transfer_client="classic",
    )
    for name in names:
        client.download_file(bucket, f"{prefix}/{name}", str(Path(folder, name)), Config=config)


if __name__ == "__main__":
    endpoint_, bucket_, prefix_, folder_, *names_ = sys.argv[1:]
    main(endpoint_, bucket_, prefix_, folder_, names_)
