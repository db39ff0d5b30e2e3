"""What was answered, kept beside the output: parts of some lines each, which a new pod goes on from.

A part is one object with a name of its own, and it counts once a small object that names it and its digest is there: a
pod may be killed at any instant, and two may write at a time, without a line lost or doubled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import zstandard
from pydantic import Field, ValidationError

from tunery_api.fields import OpenModel
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError
from tunery_common.storage import ObjectMissing, StorePath
from tunery_server.batch.answers import Answer, Tally, tally_of

FORMAT: Final = "tunery.dev/batch-part/v1"
ROUND_NAME: Final = "round.json"
_MARK: Final = ".json"
_DATA: Final = ".jsonl.zst"
_READERS: Final = 16
_CHECKERS: Final = 4
"""Each holds a whole part."""

_log = logging.getLogger(__name__)


class VersionLines(OpenModel):
    """What answered lines of a part."""

    name: str
    sha256: str | None = None
    lines: int


class Mark(OpenModel):
    """Says that a part is whole: the content of the small object."""

    format: str = FORMAT
    batch: str
    """Digest of the input and of what decides an answer: others' parts are not used."""
    first: int = Field(ge=0)
    """Index of its first line."""
    lines: int = Field(ge=1)
    errors: int = Field(ge=0)
    waiting: int = Field(0, ge=0)
    """Lines without an end, that others have passed: the part is stored anew once they have theirs."""
    file: str
    sha256: str
    """Of the file."""
    round: int = 1
    """In which its lines were asked last."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    by: list[VersionLines] = Field(default_factory=list)

    @property
    def end(self) -> int:
        """Index of the first line behind it."""
        return self.first + self.lines

    def tally(self) -> Tally:
        """Return the sums over its lines."""
        by = {(each.name, each.sha256): each.lines for each in self.by}
        return Tally(
            self.lines - self.errors - self.waiting, self.errors, self.prompt_tokens, self.completion_tokens, by
        )


@dataclass(frozen=True)
class Record:
    """A line of a part."""

    ok: bool
    number: int
    """Of the line of the input."""
    data: bytes
    """The line of output.jsonl, or of errors.jsonl."""
    waits: bool = False
    """It has no end yet."""

    def to_bytes(self) -> bytes:
        """Return it as a part has it: a sign, the number, and the line."""
        sign = b"?" if self.waits else b"+" if self.ok else b"-"
        return b"%s%d %s\n" % (sign, self.number, self.data)

    def is_open(self, *, earlier: bool) -> bool:
        """Tell whether the line is to be asked; `earlier`: its part is of an earlier round."""
        return self.waits or (earlier and not self.ok)

    @classmethod
    def of_answer(cls, answer: Answer) -> Record:
        """Return what came of a line."""
        return cls(answer.ok, answer.number, answer.data, answer.waits)

    @classmethod
    def of(cls, stored: bytes) -> Record:
        """Return what `to_bytes` has written."""
        number, _, data = stored.partition(b" ")
        waits = stored.startswith(b"?")
        return cls(stored.startswith(b"+"), int(number[1:]), data.removesuffix(b"\n"), waits)


class DamagedPart(TuneryError):
    """A part is not what was stored, and does not count any more: its lines are to be asked again."""

    def __init__(self, place: StorePath, mark: Mark) -> None:
        message = f"{place.below(mark.file).uri}, a part of the answers, is not what was stored"
        told = f"{message}: its {mark.lines} lines are asked again"
        stop = retry(f"Stop what else writes, changes or deletes files below {place.uri}")
        super().__init__(FailureReason.STORAGE_UNAVAILABLE, told, stop)
        self.mark = mark


def batch_digest(input_sha256: str, deciding: Sequence[str | None]) -> str:
    """Return what parts must have been made of to be used: the input, and what decides an answer."""
    return hashlib.sha256(json.dumps([input_sha256, *deciding]).encode()).hexdigest()


class Parts:
    """The parts of one batch. Every method blocks, and raises what stores raise."""

    def __init__(self, place: StorePath, batch: str) -> None:
        self.place = place
        self._batch = batch
        self.round = 1

    def load(self) -> list[Mark]:
        """Return the complete parts by their first line, none of them overlapping; all other objects are removed."""
        names = {self.place.relative(entry) for entry in self.place.store.list(self.place.prefix)}
        with ThreadPoolExecutor(_READERS) as pool:
            read = list(pool.map(self._mark, sorted(name for name in names if _is_mark(name))))
        found: list[Mark] = []
        for mark in sorted((mark for mark in read if mark is not None), key=lambda mark: (mark.first, mark.lines)):
            if mark.file in names and (not found or mark.first >= found[-1].end):
                found.append(mark)
        self.round = self._read_round() if ROUND_NAME in names else 1
        kept = {mark.file for mark in found} | {_mark_name(mark.first) for mark in found}
        self._remove(names - kept - ({ROUND_NAME} if self.round > 1 else set()))
        return found

    def save(self, answers: Sequence[Answer]) -> Mark:
        """Store the ends of consecutive lines as one part, with the places of those that wait."""
        return self._store(answers[0].index, list(map(Record.of_answer, answers)), tally_of(answers))

    def asked_again(self, mark: Mark) -> int:
        """Return how many lines of a part are to be asked: those that wait, and errors of an earlier round."""
        return mark.waiting + (mark.errors if mark.round < self.round else 0)

    def places_asked_again(self, mark: Mark) -> Iterator[int]:
        """Yield the indices of these lines; raises what `read` raises."""
        earlier = mark.round < self.round
        return (index for index, each in enumerate(self.read(mark), mark.first) if each.is_open(earlier=earlier))

    def mend(self, mark: Mark, answers: Sequence[Answer]) -> Mark:
        """Store a part anew with the `answers` to lines that had none, or an error of an earlier round.

        Those without an answer wait, also where they had such an error.
        """
        given, earlier, records = {answer.index: answer for answer in answers}, mark.round < self.round, list[Record]()
        for index, record in enumerate(self.read(mark), mark.first):
            if record.is_open(earlier=earlier):
                answer = given.get(index)
                found = (
                    Record.of_answer(answer) if answer is not None else Record(False, record.number, b"", waits=True)
                )
                records.append(found)
            else:
                records.append(record)
        tally = mark.tally()
        tally.errors -= mark.errors if earlier else 0
        tally.merge(tally_of(answers))
        new = self._store(mark.first, records, tally)
        if new.file != mark.file:
            self._drop_file(mark.file)
        return new

    def read(self, mark: Mark) -> Iterator[Record]:
        """Yield the lines of a part.

        Raises DamagedPart where it is not what its mark says; it does not count any more then.
        """
        unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(self._whole(mark))
        yield from (Record.of(line) for line in unpacked.split(b"\n") if line)

    def drop_damaged(self) -> None:
        """Read every part; those that are not what was stored do not count any more."""
        with ThreadPoolExecutor(_CHECKERS) as pool:
            list(pool.map(self._check, self.load()))

    def next_round(self) -> None:
        """Have the lines with errors asked again by the next attempt."""
        self._put(ROUND_NAME, {"batch": self._batch, "round": self.round + 1})

    def clear(self) -> None:
        """Remove everything."""
        self._remove({self.place.relative(entry) for entry in self.place.store.list(self.place.prefix)})

    def _whole(self, mark: Mark) -> bytes:
        try:
            data = self.place.read_bytes(mark.file)
        except ObjectMissing:
            data = b""
        if hashlib.sha256(data).hexdigest() != mark.sha256:
            name = _mark_name(mark.first)
            stored = self._mark(name)
            if stored is not None and stored.file == mark.file:  # else it vouches for what was stored since
                self.place.store.delete(self.place.key(name))
            raise DamagedPart(self.place, mark)
        return data

    def _check(self, mark: Mark) -> None:
        try:
            self._whole(mark)
        except DamagedPart as damaged:
            _log.warning("%s", damaged.message)

    def _store(self, first: int, records: Sequence[Record], tally: Tally) -> Mark:
        data = zstandard.ZstdCompressor(3).compress(b"".join(record.to_bytes() for record in records))
        digest = hashlib.sha256(data).hexdigest()
        mark = Mark(
            batch=self._batch,
            first=first,
            lines=len(records),
            errors=tally.errors,
            waiting=len(records) - tally.done,
            file=f"{_name(first)}-{digest[:12]}{_DATA}",
            sha256=digest,
            round=self.round,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            by=[VersionLines(name=name, sha256=sha, lines=lines) for (name, sha), lines in tally.by.items()],
        )
        self.place.store.put_bytes(self.place.key(mark.file), data)
        self._put(_mark_name(first), mark.model_dump(mode="json", by_alias=True, exclude_none=True))
        return mark

    def _drop_file(self, name: str) -> None:
        """Remove a file that no mark names any more: what is left of it does not count, and `load` removes it."""
        try:
            self.place.store.delete(self.place.key(name))
        except TuneryError as error:  # perhaps only the answer was lost, and the file is gone: mending would need it
            _log.warning("%s, which is not needed any more, cannot be removed: %s", name, error.message)

    def _put(self, name: str, document: dict[str, Any]) -> None:
        self.place.store.put_bytes(self.place.key(name), json.dumps(document).encode())

    def _mark(self, name: str) -> Mark | None:
        """Return a mark; None where it is of another batch, or none that is known here."""
        try:
            mark = Mark.model_validate_json(self.place.read_bytes(name))
        except (ObjectMissing, ValidationError):
            return None
        mine = mark.format == FORMAT and mark.batch == self._batch and name == _mark_name(mark.first)
        return mark if mine else None

    def _read_round(self) -> int:
        try:
            found = json.loads(self.place.read_bytes(ROUND_NAME))
            return int(found["round"]) if found["batch"] == self._batch else 1
        except (ObjectMissing, ValueError, KeyError, TypeError):
            return 1

    def _remove(self, names: set[str]) -> None:
        keys = [self.place.key(name) for name in sorted(names, key=lambda name: (not _is_mark(name), name))]
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(self.place.store.delete, keys))


def _name(first: int) -> str:
    return f"part-{first:012d}"


def _mark_name(first: int) -> str:
    return f"{_name(first)}{_MARK}"


def _is_mark(name: str) -> bool:
    return name.startswith("part-") and name.endswith(_MARK)
