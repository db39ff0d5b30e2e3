"""Log lines: JSON says which object and which look a line is about; nothing carries a credential."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from tunery_api.kinds import Kind
from tunery_operator.logs import JsonFormatter, TextFormatter, about, new_request
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime.workqueue import DONE, Requeue, WorkQueue


class Lines(logging.Handler):
    """Keeps each line as it would be written."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def logger(formatter: logging.Formatter, name: str) -> tuple[logging.Logger, Lines]:
    found, lines = logging.getLogger(name), Lines(formatter)
    found.handlers, found.propagate = [lines], False
    return found, lines


def parsed(lines: Lines) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.lines]


async def test_a_line_of_a_reconcile_tells_its_object_and_its_look() -> None:
    log, lines = logger(JsonFormatter(), "test.json")
    done: list[Key] = []

    def reconcile(key: Key) -> Requeue:
        log.warning("seen")
        done.append(key)
        return DONE

    queue = WorkQueue(reconcile, 2)
    queue.open()
    queue.add([Key(Kind.LORAJOB, "ns", "a"), Key(Kind.ADAPTERMERGE, "ns", "b")])
    while len(done) < 2:
        await asyncio.sleep(0.01)
    await queue.close(1)
    log.warning("elsewhere")
    *both, last = parsed(lines)
    assert {(line["kind"], line["namespace"], line["name"]) for line in both} == {
        ("LoRAJob", "ns", "a"),
        ("AdapterMerge", "ns", "b"),
    }
    assert len({line["request"] for line in both}) == 2
    assert "name" not in last


def test_text_reads_as_before() -> None:
    log, lines = logger(TextFormatter(), "test.text")
    with about("LoRAJob", "ns", "a", new_request()):
        log.warning("LoRAJob ns/a: s3://user:secret@host/bucket is away")
    assert lines.lines[0].split(" ", 1)[1].startswith("WARNING test.text: LoRAJob ns/a: s3://")
    assert "secret" not in lines.lines[0]
