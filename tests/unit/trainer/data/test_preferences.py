"""Preferences: which rows there are, what of them is weighed, and what each task is handed."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import processors
from transformers import PreTrainedTokenizerBase
from trl import DPOTrainer, KTOTrainer

from tunery_api.inputs import DatasetFormat, DatasetTemplate
from tunery_api.methods import TrainingTask
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_api.training import Loss
from tunery_common.errors import TuneryError
from tunery_trainer.data.cache import cache_key
from tunery_trainer.data.encode import Encoder
from tunery_trainer.data.examples import ExampleReader, InvalidRows
from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.preferences import pair
from tunery_trainer.data.prepare import PreparedData, prepare
from tunery_trainer.data.read import read_records
from tunery_trainer.data.render import Renderer
from tunery_trainer.data.render_answers import AnswerRenderer
from tunery_trainer.data.rows import Example, RowPlace
from tunery_trainer.data.scan import scan
from tunery_trainer.data.single_pass import find_files
from tunery_trainer.data.sources import find_sources
from tunery_trainer.reporting.status_parts import dataset_status
from tunery_trainer.settings.auto_method import method_choices
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import ModelFacts
from unit.trainer.data.test_templates import COMMON, TEMPLATES, TOOL, called, tokenizer_of

from kit.story import Write
from kit.tiny_models import CHATML, build_tokenizer
from kit.training import CPU, spec_of

SYSTEM = {"role": "system", "content": "Be brief"}
USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello"}
BAD = {"role": "assistant", "content": "What?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
}
RESULT = {"role": "tool", "content": "3"}

OF_IMAGES = {f"{name}{training}" for name in ("idefics3", "llava_next", "smolvlm") for training in ("", "_training")}
"""Templates that show no plain text."""
FACTS = ModelFacts("LlamaForCausalLM", 7_000_000, 2, 64, 300, 4096, tied_embeddings=False, packable=True)
DPO = DataOptions(task=TrainingTask.DPO, packing=False, max_length=64)
ORPO = dataclasses.replace(DPO, task=TrainingTask.ORPO)
KTO = dataclasses.replace(DPO, task=TrainingTask.KTO)


def convert(path: Path, options: DataOptions) -> tuple[list[Example], InvalidRows, ExampleReader]:
    invalid = InvalidRows(options.max_invalid_rows)
    reader = ExampleReader(options, invalid)
    return list(reader.examples(read_records(find_sources(path, "", "train")))), invalid, reader


def one(write: Write, row: dict[str, Any], options: DataOptions) -> Example:
    (example,), invalid, _ = convert(write("a.jsonl", [row]), options)
    assert not invalid.count
    return example


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        pytest.param({"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}, (USER,), ((GOOD,), (BAD,)), id="texts"),
        pytest.param(
            {"prompt": "Hi", "chosen": "Hello", "rejected": "What?", "system": "Be brief"},
            (SYSTEM, USER),
            ((GOOD,), (BAD,)),
            id="texts-with-system",
        ),
        pytest.param({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, (USER,), ((GOOD,), (BAD,)), id="turns"),
        pytest.param(
            {"prompt": [USER], "chosen": "Hello", "rejected": [BAD]}, (USER,), ((GOOD,), (BAD,)), id="turns-and-text"
        ),
        pytest.param({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, (USER,), ((GOOD,), (BAD,)), id="no-prompt"),
        pytest.param(
            {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD], "system": "Be brief"},
            (SYSTEM, USER),
            ((GOOD,), (BAD,)),
            id="null-prompt-and-system",
        ),
        pytest.param(
            # As HuggingFaceH4/ultrafeedback_binarized writes them.
            {"prompt": "Hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD], "messages": []},
            (SYSTEM, USER),
            ((GOOD,), (BAD,)),
            id="prompt-repeated",
        ),
        pytest.param(
            {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
            (USER, GOOD, USER),
            ((GOOD,), (BAD,)),
            id="answered-before",
        ),
        pytest.param(
            {"chosen": [USER, CALL, RESULT, GOOD], "rejected": [USER, CALL, {**RESULT, "content": "4"}, BAD]},
            (USER,),
            ((CALL, RESULT, GOOD), (CALL, {**RESULT, "content": "4"}, BAD)),
            id="tools-that-differ",
        ),
    ],
)
def test_each_way_to_write_a_pair(
    write: Write, row: dict[str, Any], prompt: tuple[Any, ...], answers: tuple[tuple[Any, ...], ...]
) -> None:
    example = one(write, row, DPO)
    assert example.rejected is not None
    assert example.messages == (*prompt, *answers[0])
    assert example.rejected.messages == (*prompt, *answers[1])
    for side, answer in zip((example, example.rejected), answers, strict=True):
        learned = range(len(prompt), len(prompt) + len(answer))
        assert side.trained == tuple(index for index in learned if side.messages[index]["role"] == "assistant")


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        pytest.param({"prompt": "Hi", "completion": "Hello"}, (USER,), (GOOD,), id="texts"),
        pytest.param({"prompt": [SYSTEM, USER], "completion": [GOOD]}, (SYSTEM, USER), (GOOD,), id="turns"),
        pytest.param({"prompt": "Hi", "completion": [SYSTEM, USER, GOOD]}, (SYSTEM, USER), (GOOD,), id="repeated"),
        pytest.param({"prompt": None, "completion": [USER, GOOD]}, (USER,), (GOOD,), id="null-prompt-repeated"),
        pytest.param(
            {"prompt": [USER, GOOD, USER], "completion": [USER, GOOD, USER, BAD]},
            (USER, GOOD, USER),
            (BAD,),
            id="turns-repeated",
        ),
    ],
)
@pytest.mark.parametrize(("label", "wanted"), [(True, True), (0, False), (1.0, True), ("False", False), ("1", True)])
def test_each_way_to_write_an_answer_that_is_wanted_or_not(
    write: Write, row: dict[str, Any], prompt: tuple[Any, ...], answer: tuple[Any, ...], label: Any, wanted: bool
) -> None:
    example = one(write, row | {"label": label}, KTO)
    assert (example.messages, example.desirable) == ((*prompt, *answer), wanted)
    assert example.trained == (len(prompt),)


@pytest.mark.parametrize(
    ("row", "start"),
    [
        ({"prompt": "Hi ", "chosen": "there", "rejected": "the sun"}, "Hi "),
        ({"prompt": "Hi ", "chosen": "there", "rejected": "the sun", "system": "Be brief"}, "Be brief\n\nHi "),
        ({"chosen": "The sky is blue", "rejected": "The sky is grey"}, "The sky is"),
        ({"chosen": "Hello", "rejected": "World"}, ""),
    ],
)
def test_plain_pairs_stand_as_they_are(write: Write, row: dict[str, Any], start: str) -> None:
    example = one(write, row, dataclasses.replace(DPO, template=DatasetTemplate.PLAIN))
    assert example.rejected is not None
    assert example.completion_at == example.rejected.completion_at == len(start)
    for side, name in ((example, "chosen"), (example.rejected, "rejected")):
        assert side.text == (start + row[name] if "prompt" in row else row[name])


def test_a_pair_of_other_columns(write: Write) -> None:
    options = dataclasses.replace(DPO, columns={"prompt": "question", "chosen": "better", "rejected": "worse"})
    example = one(write, {"question": "Hi", "better": "Hello", "worse": "What?", "prompt": "no"}, options)
    assert example.messages == (USER, GOOD)


def test_columns_are_those_of_the_task(write: Write) -> None:
    with pytest.raises(TuneryError, match="there is no field 'completion'; fields: prompt, chosen, rejected, system"):
        convert(write("a.jsonl", []), dataclasses.replace(DPO, columns={"completion": "a"}))


PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}
ONE = {"prompt": "Hi", "completion": "Hello", "label": True}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({**PAIR, "rejected": "Hello"}, "rejected: is the same as chosen, so there is nothing to prefer"),
        ({**PAIR, "chosen": " "}, "chosen: must not be empty"),
        ({**PAIR, "rejected": None}, "rejected: must be a string, found null"),
        ({**PAIR, "prompt": ""}, "prompt: must not be empty"),
        ({**PAIR, "prompt": 3}, "prompt: must be a string, found number"),
        ({**PAIR, "chosen": []}, "chosen: must not be empty"),
        (
            {"chosen": "Hello", "rejected": "What?"},
            "chosen: is a text without a prompt; name the prompt's column in spec.dataset.columns, or use template: "
            "Plain",
        ),
        (
            {"chosen": [GOOD], "rejected": [BAD]},
            "rejected: has no turn in common with chosen after which the assistant answers: no prompt",
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [{**USER, "content": "Ho"}, BAD]},
            "rejected: has no turn in common with chosen after which the assistant answers: no prompt",
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [USER]},
            "rejected: has no turn in common with chosen after which the assistant answers: no prompt",
        ),
        (
            {**PAIR, "chosen": [USER, GOOD]},
            "rejected: must begin as chosen does: both with the prompt, or both with the answer",
        ),
        (
            {"prompt": "Ho", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "chosen: must begin with the assistant's answer, or repeat the prompt before it",
        ),
        (
            {"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]},
            "prompt[1].role: must not be assistant: the answer is still to come",
        ),
        (
            {**PAIR, "chosen": [{**GOOD, "weight": 1}]},
            "chosen[0].weight: is for format Messages; beside a prompt, all of the answer counts",
        ),
        (
            {**PAIR, "prompt": [{**USER, "train": False}]},
            "prompt[0].train: is for format Messages; beside a prompt, all of the answer counts",
        ),
        ({**PAIR, "chosen": [{"role": "assistant", "content": ""}]}, "chosen[0].content: must not be empty"),
        ({**PAIR, "chosen": [{"from": "gpt", "value": "Hello"}]}, "chosen[0].role: is missing"),
        ({"prompt": "Hi", "chosen": "Hello"}, "rejected: is missing; columns: prompt, chosen"),
    ],
)
def test_a_bad_pair_is_named(write: Write, row: dict[str, Any], why: str) -> None:
    examples, invalid, _ = convert(write("a.jsonl", [PAIR, row]), dataclasses.replace(DPO, max_invalid_rows=1))
    assert (len(examples), invalid.first) == (1, [f"a.jsonl line 2: {why}"])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({**ONE, "label": "good"}, 'label: must be true or false, found "good"'),
        ({**ONE, "label": None}, "label: must be true or false, found null"),
        ({**ONE, "label": 2}, "label: must be true or false, found 2"),
        ({**ONE, "completion": ""}, "completion: must not be empty"),
        ({**ONE, "prompt": None}, "prompt: must not be null"),
        ({**ONE, "prompt": None, "completion": [GOOD]}, "prompt: must not be null"),
        (
            {**ONE, "completion": [{**USER, "content": "Ho"}, GOOD]},
            "completion: must begin with the assistant's answer, or repeat the prompt before it",
        ),
        ({"prompt": "Hi", "label": True}, "completion: is missing; columns: prompt, label"),
    ],
)
def test_a_bad_answer_is_named(write: Write, row: dict[str, Any], why: str) -> None:
    examples, invalid, _ = convert(write("a.jsonl", [ONE, row]), dataclasses.replace(KTO, max_invalid_rows=1))
    assert (len(examples), invalid.first) == (1, [f"a.jsonl line 2: {why}"])


@pytest.mark.parametrize(
    ("options", "row"),
    [
        (DPO, {"prompt": "Hi", "chosen": [GOOD], "rejected": "What?"}),
        (DPO, {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
        (KTO, {"prompt": [USER], "completion": "Hello", "label": True}),
    ],
)
def test_plain_shows_no_conversation(write: Write, options: DataOptions, row: dict[str, Any]) -> None:
    _, invalid, _ = convert(write("a.jsonl", [row]), dataclasses.replace(options, template=DatasetTemplate.PLAIN))
    assert "is a conversation, and only a chat template can say who speaks" in invalid.first[0]


@pytest.mark.parametrize(
    ("options", "row", "found", "needed", "todo"),
    [
        (
            DPO,
            {"messages": [USER, GOOD]},
            "Messages (columns: messages)",
            "Preference: chosen, rejected",
            "Set task: SFT",
        ),
        (
            DPO,
            ONE,
            "UnpairedPreference (columns: prompt, completion, label)",
            "Preference: chosen, rejected",
            "Set task: KTO",
        ),
        (
            ORPO,
            {"text": "x"},
            "Text (columns: text)",
            "Preference: chosen, rejected",
            "Set task: SFT",
        ),
        (
            KTO,
            {"prompt": "Hi", "completion": "Hello"},
            "PromptCompletion (columns: prompt, completion)",
            "UnpairedPreference: prompt, completion, label; Preference: chosen, rejected",
            "Set task: SFT",
        ),
        (
            DataOptions(),
            PAIR,
            "Preference (columns: prompt, chosen, rejected)",
            "Messages: messages; ShareGPT: conversations; ",
            "Set task: DPO (or ORPO)",
        ),
    ],
)
def test_rows_of_another_task_are_refused_at_once(
    write: Write, options: DataOptions, row: dict[str, Any], found: str, needed: str, todo: str
) -> None:
    with pytest.raises(TuneryError) as caught:
        convert(write("a.jsonl", [row, row]), options)
    assert caught.value.reason is FailureReason.DATASET_INVALID
    said = f"spec.dataset: the rows are {found}, task {options.task} learns from {needed}"
    assert caught.value.message.startswith(said)
    replace, columns = recreate(todo, "task"), recreate("Name other columns in dataset.columns", "dataset.columns")
    assert caught.value.remedies[-2:] == (replace, columns)


def test_a_label_is_not_passed_over_unasked(write: Write) -> None:
    """To SFT an answer that is not wanted would be as good as any."""
    path = write("a.jsonl", [ONE, {**ONE, "label": False}])
    with pytest.raises(TuneryError, match="the rows are UnpairedPreference") as caught:
        convert(path, DataOptions())
    task, format_, _ = caught.value.remedies
    assert (task.text, format_.fields) == ("Set task: KTO", ["dataset.format"])
    assert "dataset.format: PromptCompletion" in format_.text
    examples, _, reader = convert(path, DataOptions(format=DatasetFormat.PROMPT_COMPLETION))
    assert (len(examples), reader.ignored) == (2, {"label"})


def test_turns_in_cells_are_parsed_and_texts_stay_texts(tmp_path: Path, write: Write) -> None:
    found = json.dumps([{"name": "Ann", "role": "engineer"}])
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["prompt", "chosen", "rejected"], [json.dumps([USER]), json.dumps([GOOD]), found]]
        )
    (cells,), invalid, _ = convert(path, DPO)
    assert not invalid.count
    assert cells.messages == (USER, GOOD)
    assert cells.rejected is not None
    assert cells.rejected.messages[-1]["content"] == found
    for text in (found, json.dumps([GOOD])):
        (row,), _, _ = convert(write("b.jsonl", [{"prompt": "who", "completion": text}]), DataOptions())
        assert row.messages[-1] == {"role": "assistant", "content": text}


def test_the_format_follows_the_task(write: Write) -> None:
    both = {**PAIR, **ONE, "messages": [USER, GOOD]}
    path = write("a.jsonl", [both])
    for options, name in ((DPO, "Preference"), (KTO, "UnpairedPreference"), (DataOptions(), "Messages")):
        _, _, reader = convert(path, options)
        assert reader.format.value == name
    _, _, reader = convert(path, dataclasses.replace(KTO, format=DatasetFormat.PREFERENCE))
    assert (reader.format, reader.ignored) == (DatasetFormat.PREFERENCE, {"completion", "label", "messages"})


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Hello {number}?", "chosen": "Fine 🙂 " * (number % 3 + 1) + "!", "rejected": f"{number} no, how"}
        for number in range(count)
    ]


def prepared(write: Write, made: list[Any], options: DataOptions, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    path = write("train.jsonl", made)
    data = prepare(path, options, tokenizer, path.parent / "cache")
    assert scan(path, options, tokenizer) == data.report
    return data


def sides(data: Dataset) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of every answer, rejected ones after the chosen of their row."""
    names = [("input_ids", "labels")] + ([("rejected_input_ids", "rejected_labels")] * ("rejected_labels" in data[0]))
    return [(row[ids], row[labels]) for row in data for ids, labels in names]


def weighed(tokenizer: PreTrainedTokenizerBase, side: tuple[list[int], list[int]]) -> tuple[str, str]:
    """The prompt and what is weighed of a side, as text."""
    ids, (start, end) = side[0], stretch(side)
    return tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:end])


def stretch(side: tuple[list[int], list[int]]) -> tuple[int, int]:
    """First token that is weighed, and the first that is not after it; there is one such stretch."""
    ids, labels = side
    counted = [index for index, label in enumerate(labels) if label != -100]
    start, end = counted[0], counted[-1] + 1
    assert start > 0
    assert labels == [-100] * start + ids[start:end] + [-100] * (len(ids) - end)
    return start, end


@pytest.mark.parametrize("options", [DPO, ORPO])
def test_a_pair_becomes_one_row(write: Write, tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> None:
    data = prepared(write, rows(30), options, tokenizer)
    assert data.train.column_names == ["input_ids", "labels", "rejected_input_ids", "rejected_labels"]
    assert (len(data.train), len(data.evaluation), data.report.format) == (28, 2, DatasetFormat.PREFERENCE)
    asked = {f"<|im_start|>user\nHello {number}?<|im_end|>\n<|im_start|>assistant\n": number for number in range(30)}
    for side in (data.train, data.evaluation):
        found = [weighed(tokenizer, answer) for answer in sides(side)]
        for (prompt, chosen), (again, rejected) in zip(found[::2], found[1::2], strict=True):
            number = asked.pop(prompt)
            assert again == prompt
            assert chosen == "Fine 🙂 " * (number % 3 + 1) + "!<|im_end|>"
            assert rejected == f"{number} no, how<|im_end|>"
    assert not asked


def test_the_report_counts_both_answers(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    data = prepared(write, [*rows(30), rows(1)[0]], DPO, tokenizer)
    every = [*sides(data.train), *sides(data.evaluation)]
    tokens = data.report.tokens
    assert tokens is not None
    assert tokens.tokens == sum(len(ids) for ids, _ in every)
    assert tokens.loss_tokens == sum(label != -100 for _, labels in every for label in labels)
    longer = sorted(max(len(one[0]), len(two[0])) for one, two in zip(every[::2], every[1::2], strict=True))
    assert (tokens.p50_length, tokens.p99_length) == (longer[15], longer[-1])
    assert (tokens.assistant_turns, tokens.trained_turns, tokens.context_turns) == (62, 62, 0)
    assert (tokens.sequences, tokens.packed, tokens.desirable) == (len(data.train), False, None)
    assert (tokens.examples, tokens.split_rows, tokens.repeated_tokens, data.report.duplicates) == (31, 0, 0, 1)
    assert dataset_status(data.report).format == "Preference"


def test_kto_gets_each_answer_with_its_label(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    made = [{"prompt": f"Hello {n}?", "completion": "Fine" if n % 3 else "no", "label": n % 3 > 0} for n in range(30)]
    data = prepared(write, made, KTO, tokenizer)
    assert data.train.column_names == ["input_ids", "labels", "desirable"]
    for row, side in zip(data.train, sides(data.train), strict=True):
        assert weighed(tokenizer, side)[1] == ("Fine<|im_end|>" if row["desirable"] else "no<|im_end|>")
    assert data.report.tokens is not None
    assert data.report.tokens.desirable == sum(data.train["desirable"])
    assert dataset_status(data.report).desirable == data.report.tokens.desirable


def test_kto_takes_pairs_apart_but_never_across_the_sides(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    data = prepared(write, rows(30), KTO, tokenizer)
    assert (len(data.train), len(data.evaluation)) == (56, 4)
    for side in (data.train, data.evaluation):
        assert side["desirable"][:] == [True, False] * (len(side) // 2)
        found = [weighed(tokenizer, answer)[0] for answer in sides(side)]
        assert found[::2] == found[1::2]
    tokens = data.report.tokens
    assert tokens is not None
    assert (tokens.examples, tokens.split_rows, tokens.repeated_tokens, tokens.desirable) == (60, 0, 0, 28)


@pytest.mark.parametrize(
    ("wanted", "weights", "said"),
    [
        (15, {}, None),
        (20, {}, "19 answers are wanted and 9 are not, and by their weights those count 2.11 times as much as these"),
        (20, {"undesirableWeight": 2}, None),
        (20, {"undesirableWeight": 3}, "count 0.704 times as much"),
        (10, {}, "spec.preference.undesirableWeight 0.375 to 0.5"),
        (10, {"desirableWeight": 2.4}, None),
    ],
)
def test_weights_that_do_not_make_up_for_the_numbers_are_told(
    write: Write, tokenizer: PreTrainedTokenizerBase, wanted: int, weights: dict[str, str], said: str | None
) -> None:
    made = [{"prompt": f"Hello {n}?", "completion": "Fine", "label": n < wanted} for n in range(30)]
    report = scan(write("train.jsonl", made), KTO, tokenizer)
    spec = spec_of({"method": "LoRA", "task": "KTO", "preference": weights})
    plan = resolve(spec, FACTS, CPU, method_choices(spec, 0, CPU)[0])
    (warning,) = dataset_status(report, plan).warnings or [""]
    assert bool(warning) == bool(said)
    assert (said or "") in warning
    assert len(warning) <= 256


@pytest.mark.parametrize(("label", "other"), [(True, "false"), (False, "true")])
def test_kto_needs_both_kinds(write: Write, tokenizer: PreTrainedTokenizerBase, label: bool, other: str) -> None:
    made = [{"prompt": f"Hello {number}?", "completion": "Fine", "label": label} for number in range(20)]
    path = write("train.jsonl", made)
    for attempt in (lambda: scan(path, KTO, tokenizer), lambda: prepare(path, KTO, tokenizer, path.parent / "cache")):
        with pytest.raises(TuneryError, match=f"all 19 rows to train on have label {str(label).lower()}") as caught:
            attempt()
        assert caught.value.remedies[0] == retry(f"Add rows with label {other}")


def test_a_pair_that_is_cut(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    made = [
        *rows(10),
        {"prompt": "long " * 100, "chosen": "a", "rejected": "b"},
        {"prompt": "x", "chosen": "the same " * 50 + "one", "rejected": "the same " * 50 + "two"},
        {"prompt": "y", "chosen": "how " * 100, "rejected": "no"},
    ]
    data = prepared(write, made, DPO, tokenizer)
    tokens = data.report.tokens
    assert tokens is not None
    assert (data.report.rows, tokens.examples, tokens.unlearnable_rows) == (13, 11, 2)
    every = [*sides(data.train), *sides(data.evaluation)]
    (cut,) = [weighed(tokenizer, side) for side in every if len(side[0]) == 64]
    assert cut[0] == "<|im_start|>user\ny<|im_end|>\n<|im_start|>assistant\n"
    assert cut[1].startswith("how how ")
    warnings = dataset_status(data.report).warnings
    assert warnings is not None
    assert "2 rows are left out: spec.training.maxLength leaves not both answers, or no difference" in warnings
    with pytest.raises(TuneryError, match=r"spec\.training\.maxLength: 8 tokens leave nothing of any answer"):
        scan(write("b.jsonl", rows(5)), dataclasses.replace(DPO, max_length=8), tokenizer)


def test_all_of_an_answer_is_weighed_and_nothing_that_tools_say(
    write: Write, tokenizer: PreTrainedTokenizerBase
) -> None:
    # This template shows no calls, so the first turn says something.
    first = {"role": "assistant", "content": "Let me add"}
    made = [
        {"prompt": [USER], "chosen": [first, RESULT, GOOD], "rejected": [{**BAD, "content": f"{n}"}]} for n in "abcd"
    ]
    data = prepared(write, made, DPO, tokenizer)
    row = data.train[0]
    counted = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(counted) == "Let me add<|im_end|>Hello<|im_end|>"


FORGETFUL = CHATML.replace(
    "{{ m.content }}",
    "{% if loop.last or m.role != 'assistant' %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] }}"
    "{% endif %}",
)


def test_a_template_that_rewrites_the_answers_turns_is_refused(write: Write) -> None:
    forgetful = build_tokenizer(FORGETFUL)
    first = {"role": "assistant", "content": "<think>hm</think>One"}
    good = [*rows(5), {"prompt": [USER, first, USER], "chosen": [GOOD], "rejected": [BAD]}]
    bad = {"prompt": [USER], "chosen": [BAD], "rejected": [first, USER, GOOD]}
    report = scan(write("a.jsonl", [*good, bad]), dataclasses.replace(DPO, max_invalid_rows=1), forgetful)
    assert report.first_invalid == (
        "a.jsonl line 7: rejected: the chat template rewrites its earlier turns; move all but the last of the "
        "assistant into the prompt",
    )


def test_what_a_template_does_not_show_of_an_answer_is_named(write: Write) -> None:
    asked = {"prompt": "Weather in Bern?", "tools": [TOOL]}
    made = [
        {**asked, "chosen": [called("Bern", 1)], "rejected": "no"},
        {**asked, "chosen": "no", "rejected": [called("Bern", 1)]},
    ]
    path, options = write("a.jsonl", [*rows(5), *made]), dataclasses.replace(DPO, max_invalid_rows=2)
    why = "the chat template does not show the name 'get_weather' of this call; use a model whose template knows tools"
    assert scan(path, options, build_tokenizer(CHATML)).first_invalid == (
        f"a.jsonl line 6: chosen: messages[1].tool_calls[0]: {why}",
        f"a.jsonl line 7: rejected: messages[1].tool_calls[0]: {why}",
    )
    knowing = tokenizer_of(next(path for path in TEMPLATES if path.stem == "qwen3"))
    report = scan(path, dataclasses.replace(options, max_length=512), knowing)
    assert (report.rows, report.invalid_rows) == (7, 0)


def test_answers_that_read_alike_are_refused(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    alike = {"prompt": "Hi", "chosen": [GOOD, USER], "rejected": [GOOD]}
    silent = build_tokenizer(CHATML.replace("{{ m.content }}", "{{ m.content|trim }}"))
    spaces = {"prompt": "Hi", "chosen": "Hello", "rejected": "Hello "}
    path = write("a.jsonl", [*rows(5), alike, spaces])
    report = scan(path, dataclasses.replace(DPO, max_invalid_rows=2), silent)
    why = "rejected: reads the same as chosen to the model, so there is nothing to prefer"
    assert report.first_invalid == (f"a.jsonl line 6: {why}", f"a.jsonl line 7: {why}")


def test_prepared_pairs_are_not_those_of_another_task(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    files = find_files(write("a.jsonl", rows(5)), DPO)
    assert len({cache_key(files, options, tokenizer) for options in (DPO, ORPO, KTO)}) == 3


@pytest.mark.parametrize("change", [{"packing": True}, {"loss": Loss.ALL}])
def test_nobody_asks_for_what_no_rule_lets_through(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="weighs whole answers"):
        dataclasses.replace(DPO, **change)


def theirs(
    trainer: Any, made: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int = 64
) -> Dataset:
    """What TRL's own trainer makes of rows."""
    stub = SimpleNamespace(_tokenizer=tokenizer, calculate_KL=False, undesirable_weight=1.0, desirable_weight=1.0)
    args = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    return trainer._prepare_dataset(stub, Dataset.from_list(made), tokenizer, args, "train")


def with_start(template: str | None) -> PreTrainedTokenizerBase:
    """A tokenizer that begins every plain text with a token of its own, as Llama's do."""
    tokenizer = build_tokenizer(template, eos="<|endoftext|>")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    return tokenizer


def ours(data: PreparedData, after: int = 0) -> set[tuple[tuple[int, ...], int]]:
    """Of each answer its tokens, and how many of them are the prompt's; `after` stand behind its end."""
    found = set()
    for side in (*sides(data.train), *sides(data.evaluation)):
        start, end = stretch(side)
        assert end == len(side[0]) - after
        found.add((tuple(side[0]), start))
    return found


@pytest.mark.parametrize("start", [True, False])
def test_plain_pairs_are_tokenised_as_trl_does(write: Write, start: bool) -> None:
    tokenizer = with_start(None) if start else build_tokenizer(None, eos="<|endoftext|>")
    # Prompts that end within a word, in white space, and where a token holds both prompt and answer.
    made = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for prompt in ("Hello there,", "Hello ", "Hello th", "how are you to", "Naïve ")
        for chosen, rejected in ((" how are you?", " no"), ("there 🙂", "ere"), ("day?", "how are you today?"))
    ]
    plain = dataclasses.replace(DPO, template=DatasetTemplate.PLAIN)
    expected = set()
    for row in theirs(DPOTrainer, made, tokenizer):
        for name in ("chosen_ids", "rejected_ids"):
            # Nothing predicts the first token.
            expected.add((tuple(row["prompt_ids"] + row[name]), max(1, len(row["prompt_ids"]))))
    assert ours(prepared(write, made, plain, tokenizer)) == expected


def test_plain_pairs_without_a_prompt_are_tokenised_as_trl_does(write: Write) -> None:
    tokenizer = with_start(None)
    made = [
        {"chosen": "Hello there, how are you?", "rejected": "Hello there, no"},
        {"chosen": "smiles are numbers", "rejected": "smiles; and numbers"},
        {"chosen": "12 numbers", "rejected": "12 numerals"},
    ]
    expected = set()
    for row in theirs(DPOTrainer, made, tokenizer):
        for name in ("chosen_ids", "rejected_ids"):
            expected.add((tuple(row["prompt_ids"] + row[name]), len(row["prompt_ids"])))
    assert ours(prepared(write, made, dataclasses.replace(DPO, template=DatasetTemplate.PLAIN), tokenizer)) == expected


def test_chats_are_tokenised_as_trl_does(write: Write, tokenizer: PreTrainedTokenizerBase) -> None:
    made = [
        {
            "prompt": [SYSTEM, {**USER, "content": f"Hello {number}"}],
            "chosen": [GOOD],
            "rejected": [{**BAD, "content": f"no {number}"}],
        }
        for number in range(8)
    ]
    expected = set()
    for row in theirs(DPOTrainer, made, tokenizer):
        for name in ("chosen_ids", "rejected_ids"):
            expected.add((tuple(row["prompt_ids"] + row[name]), len(row["prompt_ids"])))
    # The line break after the end of an answer is the template's: SFT does not count it, so neither is it weighed.
    assert ours(prepared(write, made, DPO, tokenizer), after=1) == expected


@pytest.mark.slow(fast=[stem.removesuffix("-*") for stem in COMMON])
@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem not in OF_IMAGES], ids=lambda path: path.stem)
def test_every_template_gives_what_trl_makes_of_it(path: Path) -> None:
    tokenizer = tokenizer_of(path)
    row = {"prompt": [USER, GOOD, {**USER, "content": "Hi, how are you?"}], "chosen": [GOOD], "rejected": [BAD]}
    (expected,) = theirs(DPOTrainer, [row], tokenizer, max_length=4096)
    renderer = AnswerRenderer(Renderer(tokenizer, Loss.COMPLETION), TrainingTask.DPO)
    (found,) = Encoder(tokenizer, 4096).encode(renderer.render(pair(row, RowPlace("a", 1))).examples)
    for side, name in zip(found.sides, ("chosen_ids", "rejected_ids"), strict=True):
        ids = side.input_ids.tolist()
        start, _ = stretch((ids, side.labels.tolist()))
        assert start == len(expected["prompt_ids"])
        # Where the template does not write the end of sequence itself, we add it.
        assert expected["prompt_ids"] + expected[name] in (ids, ids[:-1])


@pytest.mark.parametrize("paired", [True, False])
def test_ktos_answers_are_tokenised_as_trl_does(write: Write, paired: bool) -> None:
    tokenizer = with_start(None)
    made: list[dict[str, Any]] = [
        {"prompt": f"Hello {number},", "completion": f" no {number}", "label": number % 2 == 0} for number in range(8)
    ]
    if paired:
        made = [{"prompt": f"Hello {number},", "chosen": " how", "rejected": f" no {number}"} for number in range(8)]
    plain = dataclasses.replace(KTO, template=DatasetTemplate.PLAIN)
    expected = {
        (tuple(row["prompt_ids"] + row["completion_ids"]), len(row["prompt_ids"]))
        for row in theirs(KTOTrainer, made, tokenizer)
    }
    assert ours(prepared(write, made, plain, tokenizer)) == expected


def test_a_second_system_text_is_refused(write: Write) -> None:
    system = {"role": "system", "content": "Be brief."}
    row = {**PAIR, "prompt": [system, USER], "system": "Be long."}
    _, invalid, _ = convert(write("a.jsonl", [row]), dataclasses.replace(DPO, max_invalid_rows=1))
    assert "system: is another text than the system turn of the prompt" in invalid.first[0]
    assert one(write, {**row, "system": "Be brief."}, DPO).messages[0] == system
