"""Data sets of any size: what is counted of rows lies on the disk, and says the same as all rows at once would."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tunery_api.inputs import DatasetFormat
from tunery_trainer.data import arrange as arrange_module
from tunery_trainer.data import seen_rows as seen_module
from tunery_trainer.data import spill
from tunery_trainer.data.arrange import Counted, arrange
from tunery_trainer.data.encode import Encoded
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.prepare import prepare
from tunery_trainer.data.scan import scan
from tunery_trainer.data.seen_rows import SeenRows
from tunery_trainer.data.single_pass import Files
from tunery_trainer.data.spill import Buckets, Column
from tunery_trainer.data.split import UNWANTED, WANTED, held_out

from kit.story import Write

FOUND = DatasetReport(0, 0, 0, (), 0, 0, "", DatasetFormat.MESSAGES, ())


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes to the disk at once, and equal rows are joined over and over."""
    monkeypatch.setattr(spill, "HELD_BYTES", 32)
    monkeypatch.setattr(spill, "_HELD_OF_BUCKET", 64)
    monkeypatch.setattr(seen_module, "_PENDING", 3)
    monkeypatch.setattr(arrange_module, "TOGETHER", 16)


def digest(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def seen(numbers: Sequence[int], labels: Callable[[int], int] = lambda _: 0, folder: Path | None = None) -> SeenRows:
    rows = SeenRows(folder)
    for number in numbers:
        rows.add(digest(number), labels(number))
    return rows


def whole_draw(digests: Sequence[bytes], fraction: float, seed: int, labels: Sequence[int]) -> list[int]:
    """Hold rows out as the words of `held_out` say it, with all rows at hand."""
    counts = Counter(digests)
    of: dict[bytes, int] = {}
    for each, label in zip(digests, labels, strict=True):
        of[each] = of.get(each, 0) | label
    target = min(max(1, round(len(digests) * fraction)), 1000)
    key = str(seed).encode()
    drawn = sorted(counts, key=lambda each: hashlib.blake2b(each, digest_size=16, key=key).digest())
    chosen: set[bytes] = set()
    for each in drawn:
        if sum(counts[one] for one in chosen) + counts[each] <= target:
            chosen.add(each)
    chosen = chosen or {min(drawn, key=lambda each: counts[each])}
    for label in (WANTED, UNWANTED):
        having = [each for each in drawn if of[each] & label]
        if having and chosen.issuperset(having):
            chosen.remove(having[-1])
    for label in (WANTED, UNWANTED):
        others = [each for each in drawn if each not in chosen and of[each] & label]
        if len(others) > 1 and not any(of[each] & label for each in chosen):
            chosen.add(others[0])
    return [ordinal for ordinal, each in enumerate(digests) if each in chosen]


@pytest.mark.slow
@given(
    st.lists(st.integers(0, 40), min_size=2, max_size=300).filter(lambda rows: len(set(rows)) > 1),
    st.sampled_from([0.01, 0.05, 0.3, 0.9]),
    st.integers(0, 9),
    st.sampled_from([lambda _: 0, lambda n: 1 + (n % 9 == 0), lambda n: (n % 3) or 3]),
)
@settings(max_examples=300)
def test_rows_are_drawn_as_with_all_of_them_at_hand(
    numbers: list[int], fraction: float, seed: int, labels: Callable[[int], int]
) -> None:
    expected = whole_draw([digest(n) for n in numbers], fraction, seed, [labels(n) for n in numbers])
    assert held_out(seen(numbers, labels), fraction, seed).tolist() == expected


def test_rows_are_drawn_alike_from_the_disk(little: None, tmp_path: Path) -> None:
    draw = random.Random(5)
    numbers = [int(draw.paretovariate(0.3)) % 3000 for _ in range(20_000)]
    rows = seen(numbers, lambda n: 1 + (n % 700 == 3), tmp_path)
    expected = whole_draw([digest(n) for n in numbers], 0.02, 3, [1 + (n % 700 == 3) for n in numbers])
    assert held_out(rows, 0.02, 3).tolist() == expected
    assert not list(tmp_path.iterdir()), "its files have no names"


def test_rows_that_are_there_again_are_found_from_the_disk(little: None, tmp_path: Path) -> None:
    draw = random.Random(6)
    numbers = [draw.randrange(4000) for _ in range(5000)]
    rows = SeenRows(tmp_path)
    for ordinal, number in enumerate(numbers):
        rows.add(digest(number), 2 * ordinal)
    first: dict[int, int] = {}
    again = [(o, first[n]) for o, n in enumerate(numbers) if first.setdefault(n, o) != o]
    pairs = rows.repeated(10)
    assert pairs.count == len(again)
    assert [tuple(pair) for pair in pairs.first] == [(o, 2 * o, f, 2 * f) for o, f in again[:10]]
    others = SeenRows(tmp_path)
    for number in range(3900, 4100):
        others.add(digest(number), number)
    shared = others.shared(rows, 10)
    both = [number for number in range(3900, 4100) if number in first]
    assert shared.count == len(both)
    assert [(pair.note, pair.of_ordinal) for pair in shared.first] == [(n, first[n]) for n in both[:10]]


def test_a_column_gives_back_what_it_was_given(little: None, tmp_path: Path) -> None:
    column, buckets = Column("<u4", tmp_path), Buckets("<u4", 3, tmp_path)
    for number in range(1000):
        column.append(number.to_bytes(4, "little"))
        buckets.append(number % 3, number.to_bytes(4, "little"))
        assert len(column) == number + 1
        assert column.read(max(0, number - 9), number + 1).tolist() == list(range(max(0, number - 9), number + 1))
    assert [len(chunk) for chunk in column.chunks(300)] == [300, 300, 300, 100]
    assert np.concatenate(list(column.chunks(300))).tolist() == list(range(1000))
    assert np.concatenate(list(buckets.read(2))).tolist() == list(range(2, 1000, 3))


def test_blocks_lose_no_row(
    little: None, write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(1)
    made = [{"prompt": f"Hello {n}?", "completion": "Fine 🙂 " * draw.randint(1, 6)} for n in range(300)]
    path, options = write("train.jsonl", made), DataOptions(max_length=64)
    blocks = prepare(path, options, tokenizer, tmp_path / "blocks")
    assert scan(path, options, tokenizer) == blocks.report
    monkeypatch.setattr(arrange_module, "TOGETHER", 1 << 18)
    whole = prepare(path, options, tokenizer, tmp_path / "whole")
    assert texts_of(blocks.train) == texts_of(whole.train)
    assert blocks.evaluation.to_list() == whole.evaluation.to_list()
    assert blocks.report.tokens
    assert sum(len(row["input_ids"]) for row in blocks.train) == blocks.report.tokens.training_tokens


def texts_of(data: Any) -> Counter[tuple[int, ...]]:
    """Each example of packed rows."""
    found: Counter[tuple[int, ...]] = Counter()
    for row in data:
        ends = np.cumsum(row["seq_lengths"])
        found.update(tuple(part.tolist()) for part in np.split(np.array(row["input_ids"]), ends[:-1]))
    return found


def counted(rows: int, folder: Path) -> int:
    """The most bytes that Python held while so many rows were counted, drawn and packed."""
    draw, both = random.Random(2), Files((), (), "", "")
    tokens = np.zeros(2048, np.int32)
    examples = [Encoded(tokens[:length], tokens[:length], length, 1) for length in range(1, 2049)]
    tracemalloc.start()
    try:
        side, seen_rows = Counted(folder), SeenRows(folder)
        for number in range(rows):
            one = digest(number - (number % 100 == 0))
            side.add(one, [examples[min(2047, int(draw.lognormvariate(5.3, 0.8)))]])
            seen_rows.add(one, number)
        assert seen_rows.repeated(10).count == rows // 100 - 1
        found = arrange(both, DataOptions(), FOUND, side, Counted(folder))
        assert found.layout.packed
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So little that 20,000 rows are far beyond it.
    monkeypatch.setattr(spill, "HELD_BYTES", 1 << 12)
    monkeypatch.setattr(spill, "_HELD_OF_BUCKET", 1 << 9)
    monkeypatch.setattr(seen_module, "_PENDING", 1 << 9)
    monkeypatch.setattr(arrange_module, "TOGETHER", 1 << 12)
    few, many = counted(20_000, tmp_path), counted(80_000, tmp_path)
    more = (many - few) / 60_000
    assert more < 15, f"{more:.1f} bytes more for each row more"
