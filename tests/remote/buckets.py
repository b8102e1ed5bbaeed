"""Caches on an S3 server of the tests."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import boto3

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CREDENTIALS", "upload"]

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key-of-nobody",
    "AWS_SECRET_ACCESS_KEY": "secret-of-nobody",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def upload(folder: Path, server: tuple[str, int]) -> tuple[str, dict[str, str]]:
    """Copy a folder into a new bucket.

    Returns:
        Its URL, and the environment of a process that may read it.
    """
    environment = {"AWS_ENDPOINT_URL": "http://{}:{}".format(*server), **CREDENTIALS}
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket=bucket)
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"cache/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    return f"s3://{bucket}/cache", environment
