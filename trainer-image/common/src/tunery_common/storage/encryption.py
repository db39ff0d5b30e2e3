"""The headers by which a bucket's server encrypts what is written, for buckets that demand them."""

from __future__ import annotations

from typing import Final

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage.credentials import Credentials

_KMS: Final = ("aws:kms", "aws:kms:dsse")
_ALGORITHMS: Final = ("AES256", *_KMS)


def encryption_of(credentials: Credentials, field: str) -> dict[str, str | bool]:
    """Return the parameters by which a write asks for the encryption that the credentials name.

    INVALID_SPEC for what is none. Keys of the customer's own (SSE-C) are not offered: who reads would need them, too.
    """
    key, bucket_key = credentials.get("AWS_SSE_KMS_KEY_ID"), credentials.get("AWS_SSE_BUCKET_KEY_ENABLED")
    algorithm = credentials.get("AWS_SERVER_SIDE_ENCRYPTION") or (_KMS[0] if key else None)
    source = credentials.source
    if algorithm is not None and algorithm not in _ALGORITHMS:
        raise _refused(field, f"AWS_SERVER_SIDE_ENCRYPTION in {source} must be AES256, aws:kms or aws:kms:dsse")
    if key and algorithm not in _KMS:
        raise _refused(field, f"AWS_SSE_KMS_KEY_ID in {source} goes with AWS_SERVER_SIDE_ENCRYPTION aws:kms")
    if bucket_key and bucket_key not in ("true", "false"):
        raise _refused(field, f"AWS_SSE_BUCKET_KEY_ENABLED in {source} must be true or false")
    if bucket_key and algorithm != _KMS[0]:
        raise _refused(field, f"AWS_SSE_BUCKET_KEY_ENABLED in {source} goes with AWS_SERVER_SIDE_ENCRYPTION aws:kms")
    said = {"ServerSideEncryption": algorithm, "SSEKMSKeyId": key}
    headers: dict[str, str | bool] = {name: value for name, value in said.items() if value}
    return headers | ({"BucketKeyEnabled": bucket_key == "true"} if bucket_key else {})


def _refused(field: str, message: str) -> TuneryError:
    return TuneryError(FailureReason.INVALID_SPEC, f"{field}: {message}")
