"""What pages reach over the network, on this machine: an object store that also speaks HTTP."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import TYPE_CHECKING

import boto3

from tests.remote.buckets import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["object_store", "store_environment"]


@contextlib.contextmanager
def object_store() -> Iterator[str]:
    """Start an S3 server, and yield its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel("ERROR")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


def store_environment(address: str, bucket: str) -> dict[str, str]:
    """Create a bucket, if there is none, and return variables that name the store."""
    client = boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket=bucket)
    everyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject"}
    policy = {
        "Version": "2012-10-17",
        "Statement": [{**everyone, "Resource": f"arn:aws:s3:::{bucket}/*"}],
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))  # for plain HTTP
    return {"AWS_ENDPOINT_URL": address, **CREDENTIALS}
