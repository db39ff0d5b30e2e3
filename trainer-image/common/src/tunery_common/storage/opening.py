"""From a URI and credentials to a Store and the key prefix in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunery_api.fields import bucket_problem
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage.base import Store, StorePath, check_key
from tunery_common.storage.credentials import Credentials
from tunery_common.storage.local import LocalStore
from tunery_common.storage.uris import split_uri

MakeClient = Callable[[Credentials, str], Any]
"""Returns a client of boto3 for credentials that the manifest's field has named."""


def open_store(
    uri: str, credentials: Credentials, field: str, mount: Path | None = None, clients: MakeClient | None = None
) -> StorePath:
    """Return the place that `uri` names, a folder of objects or one object; nothing is contacted yet.

    `field` is the manifest field that named the URI, for messages. `mount` is where the claim of a `pvc://claim/path`
    is mounted. `file:///folder/name` opens `/folder` with the prefix `name`. `clients` makes the client of a bucket; by
    default each store has its own. INVALID_SPEC for any other URI.
    """
    scheme, authority, key = split_uri(uri)
    if scheme == "s3" and authority:
        return StorePath(
            _open_bucket(authority, credentials, field, clients), check_key(key, f"{field}: {uri}") if key else ""
        )
    if scheme == "file" and key and authority in ("", "localhost"):
        path = Path("/", check_key(key, f"{field}: {uri}"))
        return StorePath(LocalStore(path.parent, path.parent.as_uri(), field), path.name)
    if scheme == "pvc" and authority and mount is not None:
        store = LocalStore(mount, f"pvc://{authority}", field)
        return StorePath(store, check_key(key, f"{field}: {uri}") if key else "")
    raise TuneryError(FailureReason.INVALID_SPEC, f"{field}: {uri!r} cannot be used here")


def _open_bucket(bucket: str, credentials: Credentials, field: str, clients: MakeClient | None) -> Store:
    problem = bucket_problem(bucket)
    if problem is not None:
        wanted = "s3://bucket/prefix, with a bucket of letters, digits, '.', '-', '_'"
        raise TuneryError(FailureReason.INVALID_SPEC, f"{field}: the URI {problem}; it must be {wanted}")
    from tunery_common.storage.s3 import S3Store  # boto3 takes 0.3 s that a manifest with an error should not wait
    from tunery_common.storage.s3_client import make_client

    return S3Store((clients or make_client)(credentials, field), bucket, credentials.source, field)
