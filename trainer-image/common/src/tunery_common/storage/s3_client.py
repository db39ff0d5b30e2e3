"""Make a boto3 client that works with any S3 server."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import BotoCoreError

from tunery_api.reasons import FailureReason
from tunery_api.redact import register_secret
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError, first_line
from tunery_common.storage.asker import check_waited_for
from tunery_common.storage.bodies import refuse_cut
from tunery_common.storage.credentials import Credentials
from tunery_common.storage.encryption import encryption_of
from tunery_common.storage.endpoints import check_endpoint

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

MULTIPART_THRESHOLD: Final = 64 << 20
"""Below this an upload is one atomic PUT; nearly every adapter is."""
_PART_BYTES: Final = 16 << 20
_WRITES: Final = ("PutObject", "CreateMultipartUpload", "CopyObject")
"""What begins an object; the parts of an upload are encrypted as that was told to be."""
_MAX_PARTS: Final = 9_000
_CONFIGURATION: Final = (
    retry("Set AWS_PROFILE to a profile that `aws configure list-profiles` shows"),
    retry("Correct AWS's own configuration files, or unset AWS_PROFILE and AWS_CONFIG_FILE"),
)


@dataclass(frozen=True)
class Patience:
    """How long requests wait for a server, and how often they are sent."""

    connect_seconds: float = 10
    read_seconds: float = 60
    attempts: int = 5


LONG: Final = Patience()
SHORT: Final = Patience(connect_seconds=5, read_seconds=7, attempts=3)
"""For who tries again by itself, and would have given up a silent request after some twenty seconds."""


def make_client(credentials: Credentials, field: str, patience: Patience | None = None) -> S3Client:
    """Return a client for the credentials' endpoint; INVALID_SPEC for an endpoint that is not one.

    `request_checksum_calculation` and `response_checksum_validation` are `when_required`: other S3 servers reject
    the trailers that newer SDKs send by default.
    """
    patience = patience or LONG
    endpoint = credentials.get("AWS_ENDPOINT_URL_S3") or credentials.get("AWS_ENDPOINT_URL")
    if endpoint:
        check_endpoint(endpoint, f"{field}: AWS_ENDPOINT_URL in {credentials.source}")
    style = credentials.get("AWS_S3_ADDRESSING_STYLE") or ("path" if endpoint else "auto")
    config = Config(
        connect_timeout=patience.connect_seconds,
        read_timeout=patience.read_seconds,
        retries={"mode": "standard", "total_max_attempts": patience.attempts},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": _addressing_style(style, field, credentials.source)},
        max_pool_connections=32,
        tcp_keepalive=True,
    )
    encryption = encryption_of(credentials, field)
    try:
        session = _session(credentials)
        region = _region(credentials, session, endpoint)
        client = session.client("s3", region, endpoint_url=endpoint, config=config, verify=credentials.ca_bundle)
    except BotoCoreError as error:
        message = f"{field}: no AWS credentials were found in {credentials.source}: {first_line(error)}"
        raise TuneryError(FailureReason.STORAGE_ACCESS_DENIED, message, *_CONFIGURATION) from error
    except ValueError as error:
        message = f"{field}: AWS_ENDPOINT_URL in {credentials.source} is not a URL"
        raise TuneryError(FailureReason.INVALID_SPEC, message) from error
    client.meta.events.register("before-parse.s3", refuse_cut)
    for operation in _WRITES if encryption else ():
        client.meta.events.register(f"provide-client-params.s3.{operation}", functools.partial(_ask_for, encryption))
    return client


def _session(credentials: Credentials) -> boto3.Session:
    """Return a session; raises BotoCoreError where a profile is not there, or AWS's own files are broken."""
    none: dict[str, Any] = {"profile": (None, [], None, None)}  # and no variable that names one
    session = boto3.Session(
        aws_access_key_id=credentials.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=credentials.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=credentials.get("AWS_SESSION_TOKEN"),
        # Of a Secret all is known: a profile that AWS_PROFILE names has no part in it.
        botocore_session=None if credentials.folder is None else botocore.session.Session(session_vars=none),
    )
    _remember(session)
    return session


def _region(credentials: Credentials, session: boto3.Session, endpoint: str | None) -> str:
    """Return the region that is said, else the profile's, which is one of AWS and of no other server."""
    said = credentials.get("AWS_REGION") or credentials.get("AWS_DEFAULT_REGION")
    return said or (None if endpoint else session.region_name) or "us-east-1"


def _ask_for(encryption: Mapping[str, str | bool], params: dict[str, Any], **_: object) -> None:
    params.update(encryption)


class SharedClient:
    """One client for many places while their credentials stay the same: to make one takes longer than to ask.

    It is for who has an Asker: a silent request ends soon, and what was given up is not sent again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[dict[str, str], S3Client] | None = None

    def made_for(self, credentials: Credentials, field: str) -> S3Client:
        """Return the client for these credentials; INVALID_SPEC where their endpoint is none."""
        with self._lock:
            if self._last is None or self._last[0] != credentials.values:
                client = make_client(credentials, field, SHORT)
                client.meta.events.register("before-send.s3", _check)
                self._last = credentials.values, client
            return self._last[1]


def _check(**_: object) -> None:
    check_waited_for()


def _remember(session: boto3.Session) -> None:
    """Have the keys hidden that boto3's own chain has found (in a user's files); those that are renewed are not known
    before they are asked for."""
    found = session.get_credentials()
    if found is not None and not isinstance(found, RefreshableCredentials):
        for value in (found.access_key, found.secret_key, found.token):
            register_secret(value or "")


def transfer_config(size: int = 0) -> TransferConfig:
    """Return how to move a file of `size` bytes; never the CRT client, which ignores `endpoint_url`."""
    return TransferConfig(
        multipart_threshold=MULTIPART_THRESHOLD,
        multipart_chunksize=max(_PART_BYTES, -(-size // _MAX_PARTS)),
        max_concurrency=4,
        preferred_transfer_client="classic",
    )


def _addressing_style(style: str, field: str, source: str) -> Literal["auto", "virtual", "path"]:
    if style not in ("auto", "virtual", "path"):
        message = f"{field}: AWS_S3_ADDRESSING_STYLE in {source} must be auto, virtual or path"
        raise TuneryError(FailureReason.INVALID_SPEC, message)
    return cast('Literal["auto", "virtual", "path"]', style)
