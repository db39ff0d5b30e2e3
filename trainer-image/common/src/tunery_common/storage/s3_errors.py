"""Say in one sentence which S3 action failed where, and what kind of failure it is."""

from __future__ import annotations

import re
from typing import Any, Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnection

from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, recreate, remedies_for, retry
from tunery_common.errors import TuneryError

_DENIED: Final = frozenset(
    {
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
_NO_KEY: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_NO_CREDENTIALS: Final = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
)
_UNCONDITIONAL: Final = frozenset({"NotImplemented", "501"})


_NAME_A_SECRET: Final = recreate(
    "Name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the secretRef of that URI "
    "(without a cluster: set both in the environment)"
)
_KMS_RIGHT: Final = re.compile(r"kms:[A-Z][A-Za-z]+")
"""The right that Amazon names where that of the bucket is there, and that of the key is not."""
_KMS_KEY: Final = retry(
    "Enable the key in the bucket's region, and grant the credentials kms:GenerateDataKey and kms:Decrypt on it"
)


def error_code(error: BaseException) -> str:
    """Return the S3 error code, or '' if the server did not answer."""
    return str(_response(error).get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def http_status(error: BaseException) -> int:
    """Return the HTTP status of the server's answer, or 0 if there was none."""
    if not isinstance(error, ClientError):
        return 0
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_no_key(error: BaseException) -> bool:
    """Tell whether the object is missing (and the bucket is not known to be)."""
    return error_code(error) in _NO_KEY


def is_precondition_failed(error: BaseException) -> bool:
    """Tell whether `If-None-Match: *` found an object."""
    return http_status(error) == 412 or error_code(error) == "PreconditionFailed"


def is_conflict(error: BaseException) -> bool:
    """Tell whether another conditional write to the key was under way: the same request may now be decided."""
    return error_code(error) == "ConditionalRequestConflict" or (
        http_status(error) == 409 and error_code(error) == "OperationAborted"
    )


def is_unconditional_server(error: BaseException) -> bool:
    """Tell whether the server does not know conditional writes."""
    return http_status(error) == 501 or error_code(error) in _UNCONDITIONAL


def translate(error: Exception, action: str, uri: str, who: str) -> TuneryError:
    """Return the TuneryError for `error`, which `action` (as in an IAM policy) on `uri` met.

    `who` names the credentials used: a Secret, or the pod's own identity.
    """
    code, status = error_code(error), http_status(error)
    if isinstance(error, _NO_CREDENTIALS):
        message = f"{uri}: no AWS credentials were found in {who}"
        return TuneryError(FailureReason.STORAGE_ACCESS_DENIED, message, _NAME_A_SECRET)
    if isinstance(error, ParamValidationError):
        # Nothing was sent, and nothing that a server does can mend it.
        return TuneryError(FailureReason.INVALID_SPEC, f"{uri}: {action} cannot be asked for: {_cause(error)}")
    if code == "NoSuchBucket":
        return TuneryError(FailureReason.STORAGE_NOT_FOUND, f"{uri}: the bucket does not exist")
    if code in _DENIED or code.startswith("KMS.") or status in (401, 403):
        message, remedies = _denied(error, action, who)
        return TuneryError(FailureReason.STORAGE_ACCESS_DENIED, f"{uri}: {message}", *remedies)
    if code in _NO_KEY:
        return TuneryError(FailureReason.STORAGE_NOT_FOUND, f"{uri} does not exist")
    if status in (400, 405) or code == "InvalidBucketName":
        return TuneryError(FailureReason.STORAGE_NOT_FOUND, f"{uri}: the server refused {action} ({code or status})")
    return TuneryError(FailureReason.STORAGE_UNAVAILABLE, f"{uri}: {action} failed: {_cause(error)}")


def _denied(error: Exception, action: str, who: str) -> tuple[str, tuple[Remedy, ...]]:
    """Return what was denied, and the remedies if more is known than the usual ones."""
    code = error_code(error)
    if code.startswith("KMS."):
        return f"{action}: the KMS key by which {who} has it encrypted cannot be used ({code})", (_KMS_KEY,)
    right = _KMS_RIGHT.search(_words(error))
    if right:
        return f"{action} needs {right.group()}, which was denied to {who}", (_KMS_KEY,)
    said = f"{action} was denied ({code or http_status(error)}) to {who}"
    if code == "AccessDenied" and action == "s3:PutObject":
        encrypt = retry(f"Set AWS_SERVER_SIDE_ENCRYPTION in {who}, if the bucket requires encrypted uploads")
        return said, (*remedies_for(FailureReason.STORAGE_ACCESS_DENIED), encrypt)
    return said, ()


def may_be_another_server(error: Exception) -> bool:
    """Tell whether it looks as if storage was meant that nobody asked: no host, keys or bucket of that name."""
    return isinstance(error, NoConnection) or error_code(error) in ("InvalidAccessKeyId", "NoSuchBucket")


def _words(error: Exception) -> str:
    return str(_response(error).get("Error", {}).get("Message", "")) if isinstance(error, ClientError) else ""


def _response(error: ClientError) -> dict[str, Any]:
    return dict(error.response)


def _cause(error: Exception) -> str:
    if isinstance(error, ClientError):
        return f"the server answered {error_code(error) or http_status(error)}"
    text = str(error) if isinstance(error, BotoCoreError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
