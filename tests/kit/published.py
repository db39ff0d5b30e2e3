"""What lies in S3 after a job: its files, its manifest, and whether the digests hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config


def s3_client(environment: Mapping[str, str]) -> Any:
    """Return a boto3 client for the endpoint and the credentials of `environment` (the AWS names)."""
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment.get("AWS_REGION", "us-east-1"),
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        config=Config(request_checksum_calculation="when_required", response_checksum_validation="when_required"),
    )


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and prefix of `s3://bucket/prefix`."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix.rstrip("/")


def list_keys(client: Any, uri: str) -> list[str]:
    """Return the keys below a prefix, relative to it."""
    bucket, prefix = split_uri(uri)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    return [item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", [])]


def download(client: Any, uri: str, folder: Path) -> dict[str, Any]:
    """Download a published result into `folder`, and return its manifest.

    Raises AssertionError when a file's size or SHA-256 is not what the manifest says.
    """
    bucket, prefix = split_uri(uri)
    manifest = read_manifest(client, uri)
    for name, entry in manifest["files"].items():
        content = _read(client, bucket, f"{prefix}/{name}")
        found = (len(content), hashlib.sha256(content).hexdigest())
        assert found == (entry["size"], entry["sha256"]), f"{uri}/{name} is not what its manifest says"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return manifest


def read_manifest(client: Any, uri: str) -> dict[str, Any]:
    """Return the manifest of a published result."""
    bucket, prefix = split_uri(uri)
    manifest: dict[str, Any] = json.loads(_read(client, bucket, f"{prefix}/manifest.json"))
    return manifest


def _read(client: Any, bucket: str, key: str) -> bytes:
    content: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return content
