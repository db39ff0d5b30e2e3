"""Objects in S3 or in a folder, behind one protocol; the only place that does storage I/O."""

from tunery_common.storage.base import (
    Entry,
    ObjectExists,
    ObjectMissing,
    OnBytes,
    PutResult,
    Store,
    StorePath,
    join_key,
)
from tunery_common.storage.local import LocalStore
from tunery_common.storage.opening import open_store

__all__ = [
    "Entry",
    "LocalStore",
    "ObjectExists",
    "ObjectMissing",
    "OnBytes",
    "PutResult",
    "Store",
    "StorePath",
    "join_key",
    "open_store",
]
