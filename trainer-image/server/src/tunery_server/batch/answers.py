"""What came of a line: the line of output.jsonl or errors.jsonl, and the sums that are told of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from tunery_api.batchinference import MODELS_SHOWN, AnsweredBy
from tunery_api.redact import redact
from tunery_api.runspec import AnswersReport
from tunery_server.batch.lines import Line
from tunery_server.batch.requests import Request, to_json

LONGEST_CAUSE: Final = 200
"""Bytes of what is said of one line in a message."""
Version = tuple[str, str | None]
"""The name of an adapter, and its manifest's digest; of the base the digest is None."""


@dataclass(frozen=True)
class Reply:
    """What the server answered."""

    status: int
    request_id: str
    body: Any
    adapter: str | None = None
    """Without its version; None: the base."""
    manifest_sha256: str | None = None

    def as_openai(self) -> dict[str, Any]:
        """Return it as OpenAI's batches have it."""
        return {"status_code": self.status, "request_id": self.request_id, "body": self.body}


@dataclass(frozen=True)
class Answer:
    """The end of one line."""

    index: int
    number: int
    ok: bool
    data: bytes
    """The line of output.jsonl, or of errors.jsonl, without its end."""
    version: Version | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cause: str = ""
    """Why it is an error."""
    waits: bool = False
    """There is no end yet: this only keeps its place in a part."""


def request_id(uid: str, line: Line) -> str:
    """Return the name of a line's request: the same in each attempt."""
    return f"batch_req_{hashlib.sha256(f'{uid}:{line.index}'.encode()).hexdigest()[:24]}"


def answered(line: Line, request: Request, reply: Reply) -> Answer:
    """Return the end of a line that the server answered."""
    document = {
        "id": reply.request_id,
        "custom_id": request.custom_id,
        "response": reply.as_openai(),
        "error": None,
        "tunery": {"adapter": reply.adapter, "manifestSha256": reply.manifest_sha256},
    }
    base = reply.body.get("model")
    name = reply.adapter or (base if isinstance(base, str) and base else request.model)
    usage = reply.body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        line.index,
        line.number,
        ok=True,
        data=to_json(document),
        version=(name[:253], reply.manifest_sha256),
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        completion_tokens=_count(usage, "completion_tokens", "output_tokens"),
    )


def failed(line: Line, request: Request, trouble: Trouble, name: str) -> Answer:
    """Return the end of a line that ended in an error; `name` is that of its request."""
    document = {
        "id": name,
        "custom_id": request.custom_id,
        "response": trouble.reply.as_openai() if trouble.reply else None,
        "error": {"code": trouble.code, "message": trouble.message},
    }
    cause = redact(f"{trouble.code}: {trouble.message}", LONGEST_CAUSE)
    return Answer(line.index, line.number, ok=False, data=to_json(document), cause=cause)


def waiting(line: Line) -> Answer:
    """Return what keeps the place of a line that others pass."""
    return Answer(line.index, line.number, ok=False, data=b"", waits=True)


@dataclass(frozen=True)
class Trouble:
    """Why there is no answer (yet)."""

    code: str
    message: str
    reply: Reply | None = None
    outage: bool = False
    """The server cannot be reached or cannot answer now: nothing is wrong with the line."""
    final: bool = False
    """Asking again would change nothing."""
    retry_after: float | None = None


def _count(usage: dict[str, Any], *names: str) -> int:
    found = next((usage[name] for name in names if name in usage), 0)
    return found if isinstance(found, int) and 0 <= found <= 10**9 else 0


@dataclass
class Tally:
    """Sums over lines."""

    answered: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    by: dict[Version, int] = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        """Count one more line, if it has its end."""
        if answer.waits:
            return
        self.answered += answer.ok
        self.errors += not answer.ok
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        if answer.version is not None:
            self.by[answer.version] = self.by.get(answer.version, 0) + 1

    def merge(self, other: Tally) -> None:
        """Count all that the other has counted."""
        self.answered += other.answered
        self.errors += other.errors
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        for version, lines in other.by.items():
            self.by[version] = self.by.get(version, 0) + lines

    @property
    def done(self) -> int:
        """Lines that came to an end."""
        return self.answered + self.errors

    def answered_by(self) -> list[AnsweredBy]:
        """Return what answered, most lines first."""
        ranked = sorted(self.by.copy().items(), key=lambda item: (-item[1], item[0][0], item[0][1] or ""))
        return [AnsweredBy(name=name, manifest_sha256=sha, lines=lines) for (name, sha), lines in ranked]

    def report(self, lines: int, shown: int = MODELS_SHOWN) -> AnswersReport:
        """Return what is told of a batch of so many lines."""
        return AnswersReport(
            lines=lines,
            answered=self.answered,
            errors=self.errors,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            answered_by=self.answered_by()[:shown],
        )


def tally_of(answers: Iterable[Answer]) -> Tally:
    """Return the sums over some lines."""
    tally = Tally()
    for answer in answers:
        tally.add(answer)
    return tally
