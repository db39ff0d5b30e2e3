"""From files to data sets, end to end: what preflight reports, what training gets, and what the cache saves."""

from __future__ import annotations

import dataclasses
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tunery_api.inputs import DatasetFormat, DatasetTemplate
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Action
from tunery_api.training import Loss
from tunery_common.errors import TuneryError
from tunery_trainer.data import prepare as prepare_module
from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.prepare import PreparedData, prepare
from tunery_trainer.data.scan import scan
from tunery_trainer.reporting.status_parts import dataset_status

from kit.story import Write
from kit.tiny_models import CHATML, build_tokenizer

SMALL = DataOptions(max_length=64)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    drawn = random.Random(seed)
    return [
        {"prompt": f"Hello {number}?", "completion": "Fine 🙂 " * drawn.randint(1, 6), "id": number}
        for number in range(count)
    ]


def documents(data: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The single rows of a packed data set: tokens and labels."""
    found = []
    for row in data:
        start = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            part = slice(start, start + length)
            found.append((tuple(row["input_ids"][part]), tuple(row["labels"][part])))
            start += length
        assert start == len(row["input_ids"]) == len(row["labels"])
    return found


def singles(data: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(tuple(row["input_ids"]), tuple(row["labels"])) for row in data]


def test_scan_reports_without_torch(write: Write) -> None:
    made = rows(20)
    path = write("train.jsonl", [*made, made[0], {"prompt": "x", "completion": None}])
    report = scan(path, DataOptions(max_invalid_rows=1))
    assert (report.rows, report.invalid_rows, report.duplicates) == (21, 1, 1)
    assert report.first_invalid == ("train.jsonl line 22: completion: must be a string, found null",)
    assert (report.format, report.ignored_columns) == (DatasetFormat.PROMPT_COMPLETION, ("id",))
    assert report.tokens is None
    code = "import sys; from pathlib import Path; from tunery_trainer.data.scan import scan; from tunery_trainer.data"
    code += (
        f".options import DataOptions; scan(Path({str(path)!r}), DataOptions(max_invalid_rows=1)); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "pyarrow"} & set(loaded)


def test_scan_and_prepare_agree(write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write("train.jsonl", rows(200))
    prepared = prepare(path, SMALL, tokenizer, tmp_path / "cache")
    assert scan(path, SMALL, tokenizer) == prepared.report
    tokens = prepared.report.tokens
    assert tokens is not None
    kept = [document for side in (prepared.train, prepared.evaluation) for document in documents(side)]
    assert tokens.tokens == sum(len(ids) for ids, _ in kept)
    assert tokens.loss_tokens == sum(label != -100 for _, labels in kept for label in labels)
    assert 0 < tokens.p50_length <= tokens.p99_length
    assert tokens.template == "tokenizer"


def test_a_bad_line_17_is_named(write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    made: list[Any] = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]}] * 20
    made[16] = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]}
    path = write("train.jsonl", made)
    for attempt in (lambda: scan(path, SMALL), lambda: prepare(path, SMALL, tokenizer, tmp_path / "cache")):
        with pytest.raises(TuneryError) as caught:
            attempt()
        assert caught.value.reason is FailureReason.DATASET_INVALID
        assert "train.jsonl line 17: messages[1].content: must be a string, found null" in caught.value.message
    assert list((tmp_path / "cache").iterdir()) == []


def test_rows_that_the_template_refuses_count_as_bad(write: Write) -> None:
    refusing = build_tokenizer("{% if messages|length > 2 %}{{ raise_exception('too many') }}{% endif %}{{ messages }}")
    long = {"system": "Be brief", "prompt": "Hello", "completion": "Hi"}
    path = write("train.jsonl", [*rows(5), long])
    with pytest.raises(TuneryError, match=r"1 of 6 rows are invalid.*line 6: messages: the chat template refuses them"):
        scan(path, dataclasses.replace(SMALL, loss=Loss.ALL), refusing)


LENGTHS = st.lists(st.integers(0, 60), min_size=2, max_size=40)


@pytest.mark.slow
@given(LENGTHS, st.integers(16, 80))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_token_is_lost(
    write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, lengths: list[int], max_length: int
) -> None:
    path = write("train.jsonl", [{"text": f"{number} " + "a" * length} for number, length in enumerate(lengths)])
    packed = DataOptions(max_length=max_length)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    one = prepare(path, packed, tokenizer, tmp_path / "cache")
    other = prepare(path, dataclasses.replace(packed, packing=False), tokenizer, tmp_path / "cache")
    for name in ("train", "evaluation"):
        assert Counter(documents(getattr(one, name))) == Counter(singles(getattr(other, name)))
        assert all(len(row["input_ids"]) <= max_length for row in getattr(one, name))
    tokens = one.report.tokens
    assert tokens is not None
    expected = [len(tokenizer(f"{number} " + "a" * length)["input_ids"]) + 1 for number, length in enumerate(lengths)]
    assert tokens.tokens == sum(min(length, max_length) for length in expected)
    assert tokens.lost_tokens == sum(max(0, length - max_length) for length in expected)
    assert tokens.truncated_percent == round(100 * sum(n > max_length for n in expected) / len(expected), 2)


def test_rows_without_an_answer_after_cutting_are_left_out(write: Write, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(None)
    path = write("a.jsonl", [*rows(5), {"prompt": "long " * 100, "completion": "x"}])
    report = prepare(path, SMALL, tokenizer, tmp_path / "cache").report
    assert report.tokens is not None
    assert (report.rows, report.tokens.unlearnable_rows, report.tokens.template) == (6, 1, "chatml")
    with pytest.raises(TuneryError, match=r"spec\.training\.maxLength: 4 tokens leave nothing of any answer"):
        scan(path, dataclasses.replace(SMALL, max_length=4), tokenizer)


def test_a_cache_hit_does_no_work(
    write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write("train.jsonl", rows(50)), tmp_path / "cache"
    first = prepare(path, SMALL, tokenizer, cache)

    def work(*_: object) -> None:
        raise AssertionError("the data set was read again")

    monkeypatch.setattr(prepare_module, "Survey", work)
    moved = Path(shutil.copytree(path.parent, tmp_path.parent / f"{tmp_path.name}-moved")) / path.name
    again = prepare(moved, SMALL, tokenizer, cache)
    assert (first.from_cache, again.from_cache) == (False, True)
    assert again.report == first.report
    assert singles(again.train) == singles(first.train)
    assert [entry.name for entry in cache.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize(
    "changed",
    [{"max_length": 63}, {"packing": False}, {"loss": Loss.ALL}, {"seed": 1}, {"evaluation_fraction": 0.2}],
    ids=lambda changed: next(iter(changed)),
)
def test_whatever_matters_changes_the_key(
    write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, changed: dict[str, Any]
) -> None:
    path, cache = write("train.jsonl", rows(50)), tmp_path / "cache"
    prepare(path, SMALL, tokenizer, cache)
    assert not prepare(path, dataclasses.replace(SMALL, **changed), tokenizer, cache).from_cache


def test_other_content_than_is_asked_for_is_refused(
    write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Whoever reads it, and of either side; what is asked for is the digest that the status tells."""
    path, other = write("train.jsonl", rows(50)), write("held/validation.jsonl", rows(4, seed=9))
    options, cache = dataclasses.replace(SMALL, evaluation_root=other.parent), tmp_path / "cache"
    told = dataset_status(prepare(path, options, tokenizer, cache).report)
    pinned = dataclasses.replace(options, sha256=told.sha256, evaluation_sha256=told.evaluation_sha256)
    assert None not in (pinned.sha256, pinned.evaluation_sha256)
    assert prepare(path, pinned, tokenizer, cache).from_cache, "it is the very same data"
    data = {"uri": "s3://d/train.jsonl", "sha256": told.sha256}
    held = {"uri": "s3://d/held", "sha256": told.evaluation_sha256}
    job = {"model": {"uri": "s3://m/tiny"}, "dataset": {**data, "evaluation": held}}
    asked = DataOptions.of(LoRAJobSpec.model_validate(job), "", other.parent, "")
    assert (asked.sha256, asked.evaluation_sha256) == (pinned.sha256, pinned.evaluation_sha256)
    for changed, field in ((other, "spec.dataset.evaluation"), (path, "spec.dataset")):
        changed.write_text(changed.read_text().replace("Hello 3?", "Hello 4?"))
        for read in (lambda: scan(path, pinned), lambda: prepare(path, pinned, tokenizer, cache)):
            with pytest.raises(TuneryError, match=rf"{field}\.sha256: the data has the digest") as caught:
                read()
            assert caught.value.reason is FailureReason.DATASET_INVALID
        with pytest.raises(
            TuneryError, match=rf"{field}: the data has changed: it has the digest .* LoRASweep s "
        ) as of:
            scan(path, dataclasses.replace(pinned, sweep="s"))
        restore, other = of.value.remedies
        assert "that the sweep began with" in restore.text, "the manifest states no digest"
        assert (other.action, other.fields) == (Action.RECREATE, [field.removeprefix("spec.")])


def test_content_tokenizer_and_template_change_the_key(write: Write, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = write("train.jsonl", rows(50))
    tokenizers = [build_tokenizer(None), build_tokenizer(None, eos="<|endoftext|>"), build_tokenizer("{{ messages }}")]
    assert not any(prepare(path, SMALL, tokenizer, cache).from_cache for tokenizer in tokenizers)
    write("train.jsonl", rows(51))
    assert not prepare(path, SMALL, tokenizers[0], cache).from_cache


def test_an_evaluation_split_of_its_own(write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    made = rows(30)
    root = write("train.jsonl", made).parent
    write("test.jsonl", [*rows(4, seed=9), made[3]])
    prepared = prepare(root, dataclasses.replace(SMALL, evaluation_split="test"), tokenizer, tmp_path / "cache")
    assert (prepared.report.rows, prepared.report.evaluation_rows) == (30, 5)
    assert prepared.report.overlap >= 1
    assert (len(documents(prepared.train)), len(documents(prepared.evaluation))) == (30, 5)


def test_copies_are_counted_on_both_sides_and_those_to_measure_on_apart(write: Write) -> None:
    made = rows(30)
    root = write("train.jsonl", [*made, *made[:5]]).parent
    write("test.jsonl", rows(1, seed=9) * 20)
    report = scan(root, dataclasses.replace(SMALL, evaluation_split="test"))
    assert (report.rows, report.evaluation_rows) == (35, 20)
    assert (report.duplicates, report.evaluation_duplicates) == (24, 19)


def test_an_evaluation_place_of_its_own(write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write("train.jsonl", rows(30))
    other = write("held/validation.jsonl", rows(4, seed=9))
    options = dataclasses.replace(SMALL, evaluation_root=other.parent)
    prepared = prepare(path, options, tokenizer, tmp_path / "cache")
    assert (prepared.report.evaluation_rows, len(documents(prepared.evaluation))) == (4, 4)
    other.write_text("")
    with pytest.raises(TuneryError, match=r"spec\.dataset\.evaluation: has no valid row"):
        scan(path, options)


def test_duplicates_are_kept_and_never_on_both_sides(
    write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    prepared: PreparedData = prepare(
        write("train.jsonl", rows(25) * 4),
        dataclasses.replace(SMALL, evaluation_fraction=0.2),
        tokenizer,
        tmp_path / "c",
    )
    train, held = Counter(documents(prepared.train)), Counter(documents(prepared.evaluation))
    assert prepared.report.duplicates == 75
    assert train.total() + held.total() == 100
    assert held.total() == 20
    assert not set(train) & set(held)


# As reasoning models' templates do: an opening that only the last answer keeps.
REWRITING = CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' and loop.last %}!{% endif %}{{ m.content }}")


def conversations(count: int) -> list[dict[str, Any]]:
    """Rows of one to three turns; what they say tells which row it is."""
    return [
        {"messages": [
            {"role": role, "content": f"Hello {number} {role} {turn}"}
            for turn in range(1 + number % 3) for role in ("user", "assistant")
        ]} for number in range(count)
    ]  # fmt: skip


def test_rows_that_are_split_stay_whole_in_every_count(write: Write, tmp_path: Path) -> None:
    tokenizer, made = build_tokenizer(REWRITING), conversations(60)
    path = write("train.jsonl", made)
    options = dataclasses.replace(SMALL, max_length=512, evaluation_fraction=0.2)
    prepared = prepare(path, options, tokenizer, tmp_path / "cache")
    report, tokens = prepared.report, prepared.report.tokens
    assert scan(path, options, tokenizer) == report
    assert tokens is not None
    assert (report.rows, report.duplicates, tokens.split_rows) == (60, 0, 40)
    assert (tokens.examples, tokens.assistant_turns, tokens.trained_turns) == (120, 120, 120)
    train, held = documents(prepared.train), documents(prepared.evaluation)
    assert len(train) + len(held) == 120
    sides = [{_row_of(tokenizer, ids) for ids, _ in side} for side in (train, held)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 12, "a fraction of the rows, however many examples they became"
    alone = scan(path, dataclasses.replace(options, packing=False), tokenizer).tokens
    assert alone is not None
    assert (alone.sequences, alone.packed) == (len(train), False), "examples are what trains"
    longest: dict[str, int] = {}
    for ids, _ in [*train, *held]:
        longest[_row_of(tokenizer, ids)] = max(longest.get(_row_of(tokenizer, ids), 0), len(ids))
    assert tokens.repeated_tokens == tokens.tokens - sum(longest.values())


@pytest.mark.parametrize(("fewest", "packed"), [(0, True), (8, True), (1000, False)])
def test_rows_stay_alone_where_too_few_would_remain(
    tokenizer: PreTrainedTokenizerBase, write: Write, tmp_path: Path, fewest: int, packed: bool
) -> None:
    """And preflight knows: it reports what training will find."""
    path = write("train.jsonl", rows(120))
    options = dataclasses.replace(SMALL, min_sequences=fewest)
    prepared = prepare(path, options, tokenizer, tmp_path / "cache")
    assert scan(path, options, tokenizer) == prepared.report
    tokens = prepared.report.tokens
    assert tokens is not None
    assert (tokens.sequences, tokens.packed) == (len(prepared.train), packed)
    assert ("seq_lengths" in prepared.train.column_names) is packed
    assert "seq_lengths" not in prepared.evaluation.column_names, "held-out rows are measured one by one"
    assert len(prepared.train) >= fewest or not packed


def _row_of(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids))).split("Hello ")[1].split(" ")[0]


def test_one_row_is_too_few_however_many_examples_it_becomes(write: Write) -> None:
    path = write("train.jsonl", [conversations(3)[2]])
    with pytest.raises(TuneryError, match="has one row to train on, too few to hold one out"):
        scan(path, dataclasses.replace(SMALL, max_length=512), build_tokenizer(REWRITING))


def test_what_is_less_than_it_could_be_is_said(write: Write) -> None:
    tokenizer = build_tokenizer(CHATML)
    answer = {"role": "assistant", "content": "Fine " * 8}
    asked = [{"role": "user", "content": "Hello"}, answer]
    made = [{"messages": [*asked, {"role": "user", "content": f"{number}?"}, answer]} for number in range(4)]
    made += [
        {"messages": [{"role": "user", "content": f"{number}"}, answer | {"reasoning": "hm"}]} for number in (7, 8)
    ]
    made += [{"messages": [{"role": "user", "content": "long " * 90}, answer]}]
    root = write("train.jsonl", made).parent
    write("test.jsonl", [made[0], {"messages": [{"role": "user", "content": "new"}, answer]}])
    options = dataclasses.replace(SMALL, evaluation_split="test", max_length=150)
    report = scan(root, options, tokenizer)
    status = dataset_status(report)
    tokens = report.tokens
    assert tokens is not None
    assert (status.assistant_turns, status.trained_turns, status.lost_reasoning) == (14, 13, 2)
    assert (status.unlearnable_rows, status.lost_tokens, status.overlap) == (1, tokens.lost_tokens, 1)
    assert status.warnings == [
        "1 of 14 answers are not trained: they lie beyond spec.training.maxLength",
        "the chat template leaves the reasoning of 2 of 14 answers out, so the model does not learn to reason from "
        "them",
        "1 rows are left out: spec.training.maxLength leaves nothing of any answer",
        f"{tokens.truncated_percent:.4g} % of the examples are longer than spec.training.maxLength: "
        f"{tokens.lost_tokens} of their tokens are not trained",
        "1 of 2 rows of spec.dataset.evaluation are training rows, too: its loss is lower than that of new rows",
    ]


def test_a_data_set_that_is_trained_whole_says_so_without_a_warning(write: Write, tokenizer: Any) -> None:
    report = scan(write("train.jsonl", rows(20)), dataclasses.replace(SMALL, max_length=512), tokenizer)
    status = dataset_status(report)
    assert (status.assistant_turns, status.trained_turns, status.context_turns) == (20, 20, 0)
    assert (status.template, status.warnings, status.ignored_columns) == ("tokenizer", None, ["id"])


def test_plain_completions_use_no_template(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    report = scan(write("train.jsonl", rows(20)), dataclasses.replace(SMALL, template=DatasetTemplate.PLAIN), tokenizer)
    assert report.tokens is not None
    assert (report.tokens.template, report.tokens.assistant_turns, report.tokens.trained_turns) == ("none", 20, 20)
    text = dataclasses.replace(SMALL, loss=Loss.ALL)
    assert dataset_status(scan(write("t.jsonl", rows(20)), text, tokenizer)).assistant_turns is None


def test_rows_that_are_all_the_same_are_told_as_that(write: Write) -> None:
    with pytest.raises(TuneryError, match="all 5 rows to train on are the same, too few to hold one out"):
        scan(write("train.jsonl", rows(1) * 5), SMALL)


def test_a_set_too_small_to_split_says_so_in_preflight(write: Write) -> None:
    with pytest.raises(TuneryError, match="has one row to train on, too few to hold one out"):
        scan(write("train.jsonl", rows(1)), SMALL)
