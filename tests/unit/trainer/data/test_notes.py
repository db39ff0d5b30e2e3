"""What a pass over the data finds beside its numbers: each bad row, equal rows, lengths, examples with a mask."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from tunery_api.methods import TrainingTask
from tunery_common.errors import TuneryError
from tunery_trainer.data.encode import Encoded
from tunery_trainer.data.invalid_rows import InvalidRows, Listing
from tunery_trainer.data.lengths import Lengths
from tunery_trainer.data.mask import IGNORED
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.data.notes import DataNotes
from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.prepare import prepare
from tunery_trainer.data.rows import RowError, RowPlace
from tunery_trainer.data.samples import stretches_of
from tunery_trainer.data.scan import scan
from tunery_trainer.data.seen_rows import Pairs, SeenRows

from kit.story import Write
from kit.tiny_models import CHATML, build_tokenizer

SMALL = DataOptions(max_length=64)


def rows(count: int) -> list[Any]:
    drawn = random.Random(3)
    return [{"prompt": f"Hello {n}?", "completion": "Fine 🙂 " * drawn.randint(1, 3)} for n in range(count)]


def scanned(path: Path, tokenizer: PreTrainedTokenizerBase | None, options: DataOptions = SMALL) -> DataNotes:
    """Scan, whether the data are good or not, and return what was found."""
    notebook = Notebook(path.parent / "notes")
    with contextlib.suppress(TuneryError):
        scan(path, options, tokenizer, notebook)
    notes = notebook.read()
    assert notes is not None
    return notes


def listed(folder: Path) -> list[dict[str, Any]]:
    """The bad rows of the listing."""
    return [json.loads(line) for line in (folder / "notes" / "invalid.jsonl").read_text().splitlines()]


def test_every_bad_row_is_listed_with_its_field(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    bad: list[Any] = [{"prompt": "x", "completion": None}, '{"prompt": ', {"prompt": "x"}]
    path = write("a.jsonl", [*rows(4), *bad * 20])
    notes = scanned(path, tokenizer)
    assert notes.listed == 60
    found = listed(path.parent)
    assert found[0] == {
        "file": "a.jsonl", "line": 5, "field": "completion", "reason": "must be a string, found null",
    }  # fmt: skip
    assert [row["line"] for row in found] == list(range(5, 65))
    assert [(kind.field, kind.rows) for kind in notes.invalid_kinds] == [
        ("completion", 20),
        (None, 20),
        ("completion", 20),
    ]
    assert "is not valid JSON: Expecting value" in notes.invalid_kinds[1].reason


def test_the_listing_ends_at_its_limit_and_the_count_goes_on(tmp_path: Path) -> None:
    listing = Listing(tmp_path / "invalid.jsonl", 2000)
    invalid = InvalidRows(0, listing)
    tracemalloc.start()
    for number in range(20_000):
        invalid.add(RowPlace("a.jsonl", number), RowError(f"messages[{number}].content", f"odd '{number}'"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    listing.close()
    assert invalid.count == 20_000
    assert (tmp_path / "invalid.jsonl").stat().st_size <= 2000
    assert listing.rows == len((tmp_path / "invalid.jsonl").read_text().splitlines()) > 10
    assert held < 200_000, "memory does not grow with the bad rows"
    assert [(kind.field, kind.reason, kind.rows) for kind in invalid.kinds()] == [
        ("messages[…].content", "odd …", 20_000)
    ]


def test_a_thousand_kinds_of_faults_are_not_told_apart(tmp_path: Path) -> None:
    invalid = InvalidRows(0)
    for number in range(1000):
        letters = "".join(chr(97 + int(digit)) for digit in str(number))
        invalid.add(RowPlace("a.jsonl", number), RowError(letters, "is missing"))
    kinds = invalid.kinds()
    assert len(kinds) == 51
    assert (kinds[0].reason, kinds[0].rows) == ("other faults", 950)


def test_a_listing_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    listing = Listing(tmp_path / "missing" / "invalid.jsonl", None)
    listing.add(RowPlace("a.jsonl", 1), RowError("", "bad"))
    listing.close()
    assert listing.rows == 0


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_equal_rows_are_named_with_the_first(
    write: Write, tokenizer: PreTrainedTokenizerBase, with_tokenizer: bool
) -> None:
    made = rows(8)
    path = write("train.jsonl", [*made, "", made[3], made[3]])
    write("validation.jsonl", [{"prompt": "new", "completion": "row"}, made[5]])
    options = dataclasses.replace(SMALL, evaluation_split="validation")
    notes = scanned(path.parent, tokenizer if with_tokenizer else None, options)
    assert [(str(each.row), str(each.same_as)) for each in notes.duplicates] == [
        ("train.jsonl line 10", "train.jsonl line 4"),
        ("train.jsonl line 11", "train.jsonl line 4"),
    ]
    assert [(str(each.row), str(each.same_as)) for each in notes.overlap] == [
        ("validation.jsonl line 2", "train.jsonl line 6")
    ]


def test_the_first_of_equal_rows_may_stand_in_another_file(write: Write, tmp_path: Path) -> None:
    made = rows(9)
    for number in range(3):
        write(f"train-{number}.jsonl", made[3 * number : 3 * number + 3])
    write("train-3.jsonl", [made[7], made[0]])
    notes = scanned(tmp_path / "train-0.jsonl", None)
    assert not notes.duplicates
    assert scanned(tmp_path, None).duplicates[0].same_as.file == "train-2.jsonl"
    assert [str(each.same_as) for each in scanned(tmp_path, None).duplicates] == [
        "train-2.jsonl line 2",
        "train-0.jsonl line 1",
    ]


@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], list(range(1, 1000)), [2000, 1, 1, 64, 65]])
def test_lengths_are_exact(lengths: Sequence[int]) -> None:
    counted = Lengths()
    for length in lengths:
        counted.add(length)
    notes = counted.notes(64)
    assert notes is not None
    ordered = sorted(lengths)
    nearest = [ordered[max(0, -(-len(ordered) * share // 100) - 1)] for share in (50, 90, 99)]
    assert [notes.p50, notes.p90, notes.p99, notes.longest] == [*nearest, ordered[-1]]
    assert sum(each.examples for each in notes.histogram) == len(lengths)
    before = 0
    for each in notes.histogram:
        end = each.up_to or 10**9
        assert each.examples == sum(before < length <= end for length in lengths) or each is notes.histogram[0]
        before = end
    assert 64 in [each.up_to for each in notes.histogram] or max(lengths) <= 48 or min(lengths) > 64


def test_no_lengths_are_no_histogram() -> None:
    assert Lengths().notes(64) is None
    assert Lengths().percentiles((0.5, 1.0)) == [0, 0]


CONVERSATION = [
    {"role": "system", "content": "Be 🙂."},
    {"role": "user", "content": "naïve?"},
    {"role": "assistant", "content": "Ja – 🙂🙂"},
    {"role": "user", "content": "[[x]]"},
    {"role": "assistant", "content": "  ok\n"},
]


def test_an_example_is_what_the_model_sees(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    """Exactly the labelled tokens are marked, special ones are shown, and nothing is lost in between."""
    path = write("a.jsonl", [{"messages": CONVERSATION}, {"messages": CONVERSATION[1:3]}])
    options = dataclasses.replace(SMALL, max_length=512, packing=False)
    prepared = prepare(path, options, tokenizer, path.parent / "cache", Notebook(path.parent / "notes"))
    both = [row for side in (prepared.train, prepared.evaluation) for row in side]
    first = max(both, key=lambda row: len(row["input_ids"]))
    text = scanned(path, tokenizer, options).examples[0].texts[0]
    whole = tokenizer.decode(first["input_ids"], skip_special_tokens=False)
    assert "".join(part.text for part in text.stretches) == whole
    taught = [token for token, label in zip(first["input_ids"], first["labels"], strict=True) if label != IGNORED]
    assert "".join(part.text for part in text.stretches if part.taught) == tokenizer.decode(taught)
    assert [part.taught for part in text.stretches] == [False, True, False, True] + [False] * (len(text.stretches) - 4)
    assert "<|im_start|>system" in text.stretches[0].text
    assert text.stretches[1].text.endswith("<|im_end|>")
    assert (text.tokens, text.taught_tokens) == (len(first["input_ids"]), len(taught))


def test_examples_are_the_same_in_any_order(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    made = rows(50)
    one = scanned(write("a.jsonl", made), tokenizer).examples
    other = scanned(write("b.jsonl", [made[0], *reversed(made[1:])]), tokenizer).examples
    assert len(one) == len(other) == 5
    assert one[0].place.line == 1

    def texts(examples: Any) -> set[str]:
        return {part.text for example in examples for part in example.texts[0].stretches}

    assert texts(one) == texts(other)


def test_of_a_pair_both_answers_are_shown(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    made = [{"prompt": f"{n}?", "chosen": "yes " * (n + 1), "rejected": "no"} for n in range(8)]
    options = dataclasses.replace(SMALL, task=TrainingTask.DPO, packing=False)
    notes = scanned(write("a.jsonl", made), tokenizer, options)
    chosen, rejected = notes.examples[0].texts
    assert "yes" in "".join(part.text for part in chosen.stretches if part.taught)
    assert "no" in "".join(part.text for part in rejected.stretches if part.taught)
    assert notes.chosen is not None
    assert notes.rejected is not None
    assert notes.chosen.longest > notes.rejected.longest


def test_rows_that_are_cut_and_left_out_are_named(write: Write) -> None:
    made = [*rows(4), {"prompt": "long " * 100, "completion": "x"}, {"prompt": "x", "completion": "long " * 100}]
    notes = scanned(write("a.jsonl", made), build_tokenizer(CHATML))
    assert [place.line for place in notes.unlearnable] == [5]
    assert [place.line for place in notes.cut][-2:] == [5, 6]


@pytest.mark.slow
def test_long_texts_are_shown_by_their_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = np.array(tokenizer("a" * 9000)["input_ids"], np.int32)
    shown = stretches_of(tokenizer.backend_tokenizer, Encoded(ids, ids, len(ids), 1))
    assert len(shown) == 1
    assert "5000 characters are left out here" in shown[0].text
    many = np.where(np.arange(len(ids)) % 2, ids, IGNORED).astype(np.int32)
    shown = stretches_of(tokenizer.backend_tokenizer, Encoded(ids, many, len(ids), 1))
    assert len(shown) == 41


def test_a_hit_in_the_cache_tells_the_same(write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write("a.jsonl", [*rows(30), {"prompt": "x"}])
    options = dataclasses.replace(SMALL, max_invalid_rows=1)
    told = []
    for number in range(2):
        notebook = Notebook(tmp_path / f"notes-{number}")
        found = prepare(path, options, tokenizer, tmp_path / "cache", notebook)
        assert found.from_cache == bool(number)
        assert notebook.listing is not None
        told.append((notebook.read(), notebook.report, notebook.listing.read_bytes()))
    assert told[0] == told[1]


def test_what_breaks_off_tells_what_was_read(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write("a.json", [])
    path.write_text("[" + ",".join(json.dumps(row) for row in rows(5)) + ', {"prompt": ')
    notes = scanned(path, tokenizer)
    assert not notes.complete
    assert scanned(write("b.jsonl", rows(5)), tokenizer).complete


def test_the_rows_before_an_error_are_counted_and_equal_ones_are_looked_for_once(
    write: Write, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, plain = [], SeenRows.repeated

    def repeated(self: SeenRows, most: int) -> Pairs:
        looked.append(len(self))
        return plain(self, most)

    monkeypatch.setattr(SeenRows, "repeated", repeated)
    path = write("a.json", [*rows(3), *rows(1)])
    path.write_text(f"[{','.join(path.read_text().splitlines())}, {{")
    notebook = Notebook(path.parent / "notes")
    with pytest.raises(TuneryError, match="breaks off here"):
        scan(path, SMALL, tokenizer, notebook)
    notes = notebook.read()
    assert notes is not None
    assert notebook.report is not None
    assert notebook.report.tokens is not None
    assert (notebook.report.rows, notebook.report.duplicates, len(notes.duplicates)) == (4, 1, 1)
    assert notes.lengths is not None
    assert sum(each.examples for each in notes.lengths.histogram) == 4
    assert looked == [4, 0]


def test_halves_of_characters_in_names_are_noted_as_escapes(
    write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    odd: list[Any] = ['{"prompt": "p", "completion": "c", "k\\ud800": 1}', '{"k\\ud800": 1}']
    path = write("a.jsonl", [*rows(20), *odd])
    notebook = Notebook(tmp_path / "notes")
    report = prepare(
        path, dataclasses.replace(SMALL, max_invalid_rows=1), tokenizer, tmp_path / "cache", notebook
    ).report
    assert report.ignored_columns == (r"k\ud800",)
    assert r"columns: k\ud800" in report.first_invalid[0]
    notes = notebook.read()
    assert notes is not None
    assert r"columns: k\ud" in notes.invalid_kinds[0].reason


@pytest.mark.parametrize(("levels", "bad"), [(94, 0), (95, 20), (500, 20), (5000, 20)])
def test_what_is_read_can_be_rendered_however_deep(write: Write, levels: int, bad: int) -> None:
    """Templates go down a row by the stack, too, and have less of it left."""
    tokenizer = build_tokenizer(CHATML.replace("{{ m.content }}", "{{ m.content }}{{ (m.tool_calls or []) | tojson }}"))
    deep = "[" * levels + "1" + "]" * levels
    call = '{"name": "f", "arguments": {"x": ' + deep + "}}"
    turns = '{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [' + call + "]}"
    path = write("a.jsonl", [f'{{"messages": [{turns}], "n": {n}}}' for n in range(20)])
    notes = scanned(path, tokenizer)
    assert notes.listed == bad
