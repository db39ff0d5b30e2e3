"""What a Secret for the tests' S3 server holds, and what lies in its buckets."""

from __future__ import annotations

from tunery_common.storage.credentials import Credentials

from tools.cluster.s3 import Identity, S3Server


def credentials(server: S3Server, who: Identity | None = None, **more: str) -> Credentials:
    values = server.environment()
    if who is not None:
        values |= {"AWS_ACCESS_KEY_ID": who.access_key, "AWS_SECRET_ACCESS_KEY": who.secret_key}
    return Credentials("the Secret s3", values | more)


def keys_below(server: S3Server, prefix: str, bucket: str = "adapters") -> set[str]:
    """Return the keys below a prefix."""
    found = server.client().list_objects_v2(Bucket=bucket, Prefix=prefix)
    return {item["Key"] for item in found.get("Contents", [])}
