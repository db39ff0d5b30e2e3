"""From parts to output.jsonl, errors.jsonl and manifest.json."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_api.batchinference import BatchInferenceSpec, OutputStatus
from tunery_api.manifest import AnsweredByRecord, Lineage, SourceRecord
from tunery_api.reasons import FailureReason
from tunery_api.redact import MAX_MESSAGE_BYTES, redact
from tunery_api.runspec import RunResult, RunSpec
from tunery_common.errors import TuneryError
from tunery_common.storage.publisher import Published, Publisher, Target
from tunery_server.batch.answers import LONGEST_CAUSE, Tally
from tunery_server.batch.check import Checked
from tunery_server.batch.fitting import fitting
from tunery_server.batch.parts import Mark, Parts

OUTPUT_FILE: Final = "output.jsonl"
ERRORS_FILE: Final = "errors.jsonl"
SHOWN_VERSIONS: Final = 8
"""In the termination message, which is short; the manifest tells all of them."""
_CAUSES: Final = 10
_VERSIONS: Final = ("tunery-server", "tunery-api", "tunery-common", "aiohttp")
_COUNTS: Final = ("lines", "answered", "errors", "promptTokens", "completionTokens")


@dataclass(frozen=True)
class Ended:
    """A batch of which every line has its end."""

    run: RunSpec
    spec: BatchInferenceSpec
    checked: Checked
    parts: Parts
    marks: list[Mark]
    """All of them, by their first line."""
    tally: Tally


def publish(ended: Ended, target: Target, folder: Path) -> Published:
    """Put the answers together below `folder` and publish them; raises what Publisher raises."""
    output, errors = folder / OUTPUT_FILE, folder / ERRORS_FILE
    _put_together(ended, output, errors)
    with Publisher(target) as publisher:
        done = publisher.start()
        if done is not None:
            return done
        publisher.add(output, OUTPUT_FILE)
        if ended.tally.errors:
            publisher.add(errors, ERRORS_FILE)
        return publisher.finish(_lineage(ended))


def result_of(published: Published) -> RunResult:
    """Return what is said of published answers."""
    lineage = published.manifest.lineage
    lines, answered, errors, prompt, completion = (int(lineage.metrics.get(name, 0)) for name in _COUNTS)
    by = {(each.name, each.manifest_sha256): each.lines for each in lineage.answered_by}
    tally = Tally(answered, errors, prompt, completion, by)
    output = OutputStatus(uri=published.uri, manifest_sha256=published.manifest_sha256, size_bytes=published.size_bytes)
    return RunResult(output=output, answers=tally.report(lines, SHOWN_VERSIONS))


def too_many_errors(parts: Parts, marks: Iterable[Mark], tally: Tally, spec: BatchInferenceSpec) -> TuneryError:
    """Return RequestsFailed, with the first lines and their causes."""
    causes = [f"line {number}: {cause}" for number, cause in _causes(parts, marks)]
    begins = (
        f"{tally.errors:,} of the first {tally.done:,} lines ended in an error, spec.maxErrors is {spec.max_errors:,}"
    )
    more = "; …" if tally.errors > _CAUSES else ""
    room = MAX_MESSAGE_BYTES - len(f"{begins}: {more}".encode())
    message = f"{begins}: {fitting(causes, room)}{more}"
    return TuneryError(FailureReason.REQUESTS_FAILED, message)


def _causes(parts: Parts, marks: Iterable[Mark]) -> Iterator[tuple[int, str]]:
    left = _CAUSES
    for mark in sorted(marks, key=lambda mark: mark.first):
        for record in parts.read(mark) if mark.errors else ():
            if not (record.ok or record.waits) and left:
                left -= 1
                error = json.loads(record.data)["error"]
                yield record.number, redact(f"{error['code']}: {error['message']}", LONGEST_CAUSE)
        if not left:
            return


def _put_together(ended: Ended, output: Path, errors: Path) -> None:
    """Write both files from the parts; raises InternalError where the parts are not all lines."""
    expected = 0
    with output.open("wb") as answers, errors.open("wb") as failures:
        for mark in ended.marks:
            if mark.first != expected or mark.waiting:
                break
            for record in ended.parts.read(mark):
                file = answers if record.ok else failures
                file.write(record.data + b"\n")
            expected = mark.end
    if expected != ended.checked.lines:
        message = f"the parts end at line {expected} of {ended.checked.lines}"
        raise TuneryError(FailureReason.INTERNAL_ERROR, message)


def _lineage(ended: Ended) -> Lineage:
    run, spec, tally = ended.run, ended.spec, ended.tally
    counts = (ended.checked.lines, tally.answered, tally.errors, tally.prompt_tokens, tally.completion_tokens)
    return Lineage(
        dataset=SourceRecord(uri=spec.input.uri, digest=ended.checked.digest),
        hyperparameters={"defaultModel": spec.default_model} if spec.default_model else {},
        image=run.image,
        versions={name: importlib.metadata.version(name) for name in _VERSIONS},
        metrics=dict(zip(_COUNTS, map(float, counts), strict=True)),
        answered_by=[
            AnsweredByRecord(name=each.name, manifest_sha256=each.manifest_sha256, lines=each.lines)
            for each in tally.answered_by()
        ],
        server=f"{run.identity.namespace}/{spec.server_ref.name}",
    )
