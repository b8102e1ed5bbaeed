"""An S3 server, buckets in it, and caches to serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import boto3
import pytest

from logitcache.cache.store import remote
from logitcache.cache.store.retry import RetryPolicy
from tests.remote.buckets import CREDENTIALS

if TYPE_CHECKING:
    from pathlib import Path

FAST = RetryPolicy(first_seconds=0.01, longest_seconds=0.05, patience_seconds=20)
FLEETING = RetryPolicy(first_seconds=0.01, longest_seconds=0.05, patience_seconds=0.1)
"""For stores that fail for good."""


@pytest.fixture
def s3(s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of the server, which the environment names, with a bucket in it."""
    address = "http://{}:{}".format(*s3_server)
    for name, value in {"AWS_ENDPOINT_URL": address, **CREDENTIALS}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
    return address


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Do not wait for long between two attempts; keep copies nowhere else."""
    monkeypatch.setattr(remote, "environment_policy", lambda: FAST)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))


@pytest.fixture
def fleeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon."""
    monkeypatch.setattr(remote, "environment_policy", lambda: FLEETING)
