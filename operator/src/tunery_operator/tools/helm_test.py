"""Provide the program of `helm test`: it checks an installation from a pod of its own, and prints a line for each step.

Without a bucket it runs a LoRAJob that can't succeed: its preflight must report in the status which Secret is missing.
With a bucket it trains the tiny model that `tunery_common.inputs.sample` has put there, to Succeeded.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp

from tunery_api.kinds import Kind
from tunery_api.names import GROUP
from tunery_api.reasons import FailureReason
from tunery_operator.client.client import KubeClient
from tunery_operator.client.connection import load_connection
from tunery_operator.client.permissions import LORAJOBS, OWNERS, TEST_PERMISSIONS, Call, delete_owner
from tunery_operator.errors import ApiFailure

NAME: Final = "helm-test"
MISSING: Final = "helm-test-has-no-bucket"
"""The name of a Secret that does not exist."""
_UNAUTHENTICATED: Final = {"Authorization": "Bearer not-a-token"}
_ANSWERS: Final = (401, 503)
"""Statuses for an unauthenticated request: of the leader, and of a standby replica."""
_LOOK_SECONDS: Final = 2.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
_TRIES: Final = 4

Json = dict[str, Any]
logger = logging.getLogger(__name__)


class CheckFailed(Exception):
    """A part of the installation does not work; the message says which, and what to check."""


class Options(NamedTuple):
    """The chart's arguments: the installation, and what to train."""

    namespace: str
    progress_url: str
    ready_url: str
    authority: Path
    output_uri: str
    secret: str
    account: str
    seconds: float
    """Seconds that the job may take."""


def check_api(client: KubeClient, options: Options) -> str:
    """Check that the API server serves every kind."""
    for plural in OWNERS:
        try:
            client.request(Call(GROUP, plural, "list"), options.namespace, query={"limit": "1"})
        except ApiFailure as error:
            raise CheckFailed(f"{error}; are the CRDs installed (crds.install), and of this version?") from error
    return f"the API server serves {', '.join(OWNERS)}"


def check_operator(options: Options) -> str:
    """Check that the operator reports that it is ready."""
    status, text = _ask("GET", options.ready_url, "do the operator's pods run?")
    if status != 200:
        raise CheckFailed(f"the operator is not ready: {text[:500]}")
    return "the operator is ready"


def check_certificate(options: Options) -> str:
    """Check that the endpoint's certificate matches its CA, and that the endpoint rejects an unauthenticated report."""
    url, context = options.progress_url, ssl.create_default_context(cafile=options.authority)
    hint = "is its certificate valid, and does a NetworkPolicy allow pods to connect?"
    status, _ = _ask("POST", url, hint, data=b"{}", headers=_UNAUTHENTICATED, ssl=context)
    if status not in _ANSWERS:
        raise CheckFailed(f"{url} answered an unauthenticated report with {status}")
    return f"pods can report to {url}, its certificate is valid, and unauthenticated reports are rejected"


def _ask(method: str, url: str, hint: str, **options: Any) -> tuple[int, str]:
    """Return the status and the text of an answer. Raises CheckFailed with the hint if all tries fail."""
    failure = ""
    for _ in range(_TRIES):
        try:
            return asyncio.run(_fetch(method, url, **options))
        except (aiohttp.ClientError, OSError) as error:
            failure = str(error) or "no answer in time"
    raise CheckFailed(f"{url} does not answer: {failure}; {hint}")


async def _fetch(method: str, url: str, **options: Any) -> tuple[int, str]:
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, session.request(method, url, **options) as answer:
        return answer.status, await answer.text(errors="replace")


def build_job(options: Options) -> Json:
    """Return the LoRAJob to run: one that trains, or, without a bucket, one whose preflight must fail."""
    secret, location = options.secret, options.output_uri.rstrip("/")
    if not location:
        secret, location = MISSING, f"s3://{MISSING}"
    secret_ref = {"secretRef": {"name": secret}} if secret else {}
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": Kind.LORAJOB.value,
        "metadata": {"name": NAME, "namespace": options.namespace},
        "spec": {
            "model": {"uri": f"{location}/model", "servedName": "sample", **secret_ref},
            "dataset": {"uri": f"{location}/rows.jsonl", **secret_ref},
            "method": "LoRA",
            "lora": {"rank": 2},
            "training": {"maxSteps": 20},
            "output": {"uri": f"{location}/adapter", "overwrite": True, **secret_ref},
            "resources": {"gpus": 0, "cpu": "1", "memory": "3Gi", "ephemeralStorage": "4Gi"},
            **({"scheduling": {"serviceAccountName": options.account}} if options.account else {}),
        },
    }


def check_job(client: KubeClient, options: Options, clock: Callable[[], float] = time.monotonic) -> str:
    """Run the LoRAJob to its end, and delete it."""
    body = build_job(options)
    _remove(client, options.namespace)  # of an earlier test
    _wait(lambda: client.get(LORAJOBS.get, options.namespace, NAME) is None, clock() + 60, clock)
    client.request(LORAJOBS.create, options.namespace, body=body)
    status = _wait_for_end(client, options, clock)
    outcome = _evaluate(status, bool(options.output_uri))
    _remove(client, options.namespace)
    return outcome


def _remove(client: KubeClient, namespace: str) -> None:
    """Delete the LoRAJob in the foreground: it exists until its Jobs are gone, whose names the next one needs."""
    try:
        query = {"propagationPolicy": "Foreground"}
        client.request(delete_owner(Kind.LORAJOB.plural), namespace, NAME, query=query)
    except ApiFailure as error:
        if error.status != 404:
            raise


def _wait_for_end(client: KubeClient, options: Options, clock: Callable[[], float]) -> Json:
    """Return the status at the job's end, and print each phase."""
    seen: list[str] = []
    status: Json = {}

    def ended() -> bool:
        nonlocal status
        status = (client.get(LORAJOBS.get, options.namespace, NAME) or {}).get("status") or {}
        phase = str(status.get("phase", ""))
        if phase and phase not in seen:
            seen.append(phase)
            logger.info("     %s is %s", NAME, phase)
        return phase in ("Succeeded", "Failed")

    if not _wait(ended, clock() + options.seconds, clock):
        last = "; ".join(f"{each['type']}={each['status']} {each.get('message', '')}" for each in _conditions(status))
        command = f"kubectl -n {options.namespace} describe lorajob {NAME}"
        raise CheckFailed(
            f"{NAME} has not ended within {options.seconds:.0f} s: {last or 'it has no status'}; see {command}"
        )
    return status


def _wait(check: Callable[[], bool], end: float, clock: Callable[[], float]) -> bool:
    """Poll until it is true; return whether it became true in time."""
    while not check():
        if clock() > end:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _conditions(status: Json) -> list[Json]:
    found: list[Json] = status.get("conditions") or []
    return found


def _evaluate(status: Json, trains: bool) -> str:
    """Return the result of the end. Raises CheckFailed for an unexpected end."""
    failed = next(
        (each for each in _conditions(status) if each["type"] == "Succeeded" and each["status"] == "False"), {}
    )
    reason, message = str(failed.get("reason", "")), str(failed.get("message", ""))
    if trains:
        if status.get("phase") != "Succeeded":
            raise CheckFailed(f"{NAME} has failed: {reason}: {message}")
        return f"a LoRAJob trained on a CPU, and its adapter is at {status.get('adapter', {}).get('uri')}"
    if reason != FailureReason.SECRET_NOT_FOUND:
        raise CheckFailed(
            f"the preflight of {NAME} should report the missing Secret {MISSING}, but reported {reason}: {message}"
        )
    return "a LoRAJob's preflight ran and reported, as expected, that there is no bucket (set test.outputUri to train)"


def parse_options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("namespace", "progress-url", "ready-url"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--authority", type=Path, required=True)
    for name in ("output-uri", "secret", "account"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--seconds", type=float, required=True)
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every step, print its result, and stop at the first failure; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    options = parse_options(arguments)
    with KubeClient(load_connection(), allowed=TEST_PERMISSIONS) as client:
        steps: tuple[Callable[[], str], ...] = (
            lambda: check_api(client, options),
            lambda: check_operator(options),
            lambda: check_certificate(options),
            lambda: check_job(client, options),
        )
        for step in steps:
            try:
                logger.info("ok   %s", step())
            except (CheckFailed, ApiFailure) as error:
                logger.info("FAIL %s", error)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
