"""AWS's own files and profiles, as a laptop has them: taken where they are right, told where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import credentials as credentials_module
from tunery_common.storage import open_store
from tunery_common.storage.s3_client import make_client


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("[profile other]\nregion = eu-central-1\n", "The config profile (team) could not be found"),
        ("bro[ken\n", "Unable to parse config file: "),
        ("[profile team]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = gone\n", 'The source_profile "gone" '),
    ],
    ids=["no such profile", "no file of AWS", "a profile of none"],
)
def test_a_profile_that_is_not_there_is_told_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: str, said: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text(files)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    with pytest.raises(TuneryError) as caught:
        open_store("s3://b/out", credentials_module.ambient(), "spec.output.uri")
    assert caught.value.reason is FailureReason.STORAGE_ACCESS_DENIED
    assert caught.value.message.startswith(f"spec.output.uri: no AWS credentials were found in the environment: {said}")
    assert "AWS_PROFILE" in caught.value.remedies[0].text


def test_a_profile_that_is_there_has_keys_and_region_and_a_secret_needs_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    keys = "[profile team]\nregion = eu-central-1\naws_access_key_id = theirs\naws_secret_access_key = theirs-too\n"
    (tmp_path / "config").write_text(keys)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    client = make_client(credentials_module.ambient(), "spec.output.uri")
    assert client.meta.region_name == "eu-central-1"
    assert "theirs" in client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    monkeypatch.setenv("AWS_PROFILE", "gone")
    secret = tmp_path / "secret"
    secret.mkdir()
    for name in credentials_module.S3_KEYS:
        (secret / name).write_text("ours")
    client = make_client(credentials_module.from_secret(secret, "s3"), "spec.output.uri")
    assert client.meta.region_name == "us-east-1"
    assert "=ours&" in client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
