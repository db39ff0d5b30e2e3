"""A bucket name that no S3 server can have is the manifest's error, told before anything is asked of a server."""

from __future__ import annotations

import pytest

from tunery_api.reasons import ExitCode, FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import open_store

from kit.s3 import credentials
from tools.cluster.s3 import S3Server


@pytest.mark.parametrize(
    "name", ["user:s3cr3tpw@bucket", "bucket:8333", "bücket", "a b", "a,b", "x" * 256, "arn:aws:s3"]
)
@pytest.mark.parametrize("act", ["head", "list"])
def test_a_name_that_is_none(s3_server: S3Server, name: str, act: str) -> None:
    def ask() -> None:
        store, prefix = open_store(f"s3://{name}/out", credentials(s3_server), "spec.output.uri")
        getattr(store, act)(prefix)

    with pytest.raises(TuneryError) as caught:
        ask()
    assert caught.value.reason is FailureReason.INVALID_SPEC
    assert caught.value.exit_code is ExitCode.USER_ERROR
    assert caught.value.message.startswith("spec.output.uri: ")
    assert "s3cr3tpw" not in str(caught.value)
    assert "secretRef" in caught.value.message or "@" not in name


@pytest.mark.parametrize("name", ["Upper_case", "my.bucket-1", "abc"])
@pytest.mark.parametrize("act", ["head", "list", "read_bytes"])
def test_a_name_that_a_server_may_know_is_asked_for(s3_server: S3Server, name: str, act: str) -> None:
    """Old buckets of AWS and those of other servers have upper case and underscores."""
    store, prefix = open_store(f"s3://{name}/out", credentials(s3_server), "spec.output.uri")
    with pytest.raises(TuneryError) as caught:
        getattr(store, act)(prefix)
    assert caught.value.reason is FailureReason.STORAGE_NOT_FOUND


def test_a_key_that_is_too_long_is_not_tried_again(s3_server: S3Server, bucket: str) -> None:
    store, prefix = open_store(f"s3://{bucket}/{'k' * 2000}", credentials(s3_server), "spec.output.uri")
    with pytest.raises(TuneryError) as caught:
        store.put_bytes(prefix, b"")
    assert caught.value.exit_code is ExitCode.USER_ERROR
