"""Formats become conversations or text, strictly; each bad row is named by file, line, field and reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunery_api.inputs import DatasetFormat, DatasetTemplate
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Action, remedies_for, retry
from tunery_common.errors import TuneryError
from tunery_trainer.data.examples import ExampleReader
from tunery_trainer.data.invalid_rows import InvalidRows
from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.read import read_records
from tunery_trainer.data.rows import Example, RowError, RowPlace
from tunery_trainer.data.sources import find_sources

from kit.story import Write

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
EXCHANGE = (USER, ASSISTANT)
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"numbers": [1, {"deep": 2}]}'}}


def convert(path: Path, options: DataOptions | None = None) -> tuple[list[Example], InvalidRows, ExampleReader]:
    chosen = options or DataOptions()
    invalid = InvalidRows(chosen.max_invalid_rows)
    reader = ExampleReader(chosen, invalid)
    return list(reader.examples(read_records(find_sources(path, "", "train")))), invalid, reader


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        pytest.param({"prompt": "Hi", "completion": "Hello"}, DatasetFormat.PROMPT_COMPLETION, EXCHANGE, id="prompt"),
        pytest.param(
            {"instruction": "Hi", "input": "", "output": "Hello"}, DatasetFormat.ALPACA, EXCHANGE, id="alpaca"
        ),
        pytest.param(
            {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be brief"},
            DatasetFormat.ALPACA,
            (
                {"role": "system", "content": "Be brief"},
                {"role": "user", "content": "Add\n\n1 2"},
                {"role": "assistant", "content": "3"},
            ),
            id="alpaca-with-input-and-system",
        ),
        pytest.param(
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            DatasetFormat.SHARE_GPT,
            EXCHANGE,
            id="sharegpt",
        ),
        pytest.param({"messages": [USER, ASSISTANT], "prompt": "x"}, DatasetFormat.MESSAGES, EXCHANGE, id="messages"),
        pytest.param(
            {"messages": json.dumps([USER, ASSISTANT])}, DatasetFormat.MESSAGES, EXCHANGE, id="messages-as-json"
        ),
        pytest.param(
            {
                "messages": [
                    {**USER, "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                    ASSISTANT,
                ]
            },
            DatasetFormat.MESSAGES,
            EXCHANGE,
            id="content-parts",
        ),
        pytest.param(
            {"messages": [{**USER, "tool_calls": None}, {**ASSISTANT, "tool_calls": None, "name": None}]},
            DatasetFormat.MESSAGES,
            EXCHANGE,
            id="nulls-of-parquet",
        ),
        pytest.param(
            {"prompt": [USER], "completion": [ASSISTANT]}, DatasetFormat.PROMPT_COMPLETION, EXCHANGE, id="turns-of-trl"
        ),
    ],
)
def test_formats(write: Write, row: dict[str, Any], name: DatasetFormat, messages: tuple[Any, ...]) -> None:
    (example,), invalid, reader = convert(write("a.jsonl", [row]))
    assert example.messages == messages
    assert (example.text, invalid.count, reader.format) == (None, 0, name)


def test_of_a_prompt_in_turns_no_answer_is_learned(write: Write) -> None:
    row = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}
    (example,), _, _ = convert(write("a.jsonl", [row]))
    assert (example.answers, example.trained) == ((1, 3), (3,))


def test_text_and_unknown_columns(write: Write) -> None:
    (example,), _, reader = convert(write("a.jsonl", [{"text": "Once", "label": 3, "id": "x"}]))
    assert (example.text, example.messages) == ("Once", ())
    assert (reader.format, reader.ignored) == (DatasetFormat.TEXT, {"label", "id"})


def test_nested_tool_calls(write: Write) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    turns += [{"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"}, ASSISTANT]
    (example,), _, _ = convert(write("a.jsonl", [{"messages": turns, "tools": json.dumps([tool])}]))
    function = {"name": "add", "arguments": {"numbers": [1, {"deep": 2}]}}
    assert example.messages[1]["content"] == ""
    assert example.messages[1]["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]
    assert example.messages[2] == {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"}
    assert example.tools == (tool,)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_by_any_of_its_names(write: Write, key: str) -> None:
    (example,), _, _ = convert(write("a.jsonl", [{"messages": [USER, {**ASSISTANT, key: "Hm."}]}]))
    assert example.messages[1] == {**ASSISTANT, "reasoning_content": "Hm."}


MARKED = [
    pytest.param({"weight": 0}, {"weight": 1}, id="weight"),
    pytest.param({"weight": 0.0}, {"weight": None}, id="weight-of-parquet"),
    pytest.param({"train": False}, {"train": True}, id="train"),
    pytest.param({"train": False, "weight": 0}, {}, id="both"),
]


@pytest.mark.parametrize(("first", "second"), MARKED)
def test_a_turn_can_be_context(write: Write, first: dict[str, Any], second: dict[str, Any]) -> None:
    turns = [{**USER, "train": False}, {**ASSISTANT, **first}, USER, {**ASSISTANT, **second}]
    said = [{"from": "gpt" if "ass" in turn["role"] else "human", "value": turn["content"], **turn} for turn in turns]
    path = write("a.jsonl", [{"messages": turns}])
    other = write("b.jsonl", [{"system": "Be brief", "conversations": said}])
    (example,), _, _ = convert(path)
    (shared,), _, _ = convert(other)
    assert (example.trained, shared.trained) == ((3,), (4,))
    assert example.messages == (USER, ASSISTANT, USER, ASSISTANT), "no template sees the marks"
    (unmarked,), _, _ = convert(write("c.jsonl", [{"messages": [USER, ASSISTANT] * 2}]))
    assert unmarked.trained == (1, 3)
    assert unmarked.digest() != example.digest()


PLAIN = [
    pytest.param({"prompt": "Once upon", "completion": " a time"}, "Once upon", " a time", id="prompt"),
    pytest.param({"prompt": "Hi", "completion": " Hello", "system": "S"}, "S\n\nHi", " Hello", id="system"),
    pytest.param({"instruction": "Add", "input": "1 2", "output": "3"}, "Add\n\n1 2\n\n", "3", id="alpaca"),
]


@pytest.mark.parametrize(("row", "prompt", "completion"), PLAIN)
def test_plain_rows_stay_as_they_are(write: Write, row: dict[str, Any], prompt: str, completion: str) -> None:
    (example,), _, _ = convert(write("a.jsonl", [row]), DataOptions(template=DatasetTemplate.PLAIN))
    assert (example.text, example.completion_at, example.messages) == (prompt + completion, len(prompt), ())
    # Where the completion begins is part of what is trained.
    moved = Example(example.place, text=example.text, completion_at=len(prompt) - 1)
    assert moved.digest() != example.digest()


def test_plain_is_not_for_conversations_and_not_for_tools(write: Write) -> None:
    plain = DataOptions(template=DatasetTemplate.PLAIN)
    with pytest.raises(TuneryError, match=r"spec\.dataset\.template: Plain is for prompts.*is Messages") as caught:
        convert(write("a.jsonl", [{"messages": [USER, ASSISTANT]}]), plain)
    assert caught.value.reason is FailureReason.INVALID_SPEC
    _, turns, _ = convert(write("t.jsonl", [{"prompt": [USER], "completion": [ASSISTANT]}]), plain)
    assert "is a conversation, and only a chat template can say who speaks" in turns.first[0]
    tool = {"type": "function", "function": {"name": "add"}}
    path = write("b.jsonl", [{"prompt": "Hi", "completion": "x", "tools": [tool]}])
    assert "tools: only a chat template can show tools" in convert(path, plain)[1].first[0]


def bad_call(**changed: Any) -> dict[str, Any]:
    call = {**CALL, "function": {"name": "add", "arguments": "{}"} | changed}
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        pytest.param(
            {"messages": [USER, {**ASSISTANT, "content": None}]},
            "messages[1].content: must be a string, found null",
            id="null",
        ),
        pytest.param(
            {"messages": [USER, {**ASSISTANT, "content": "  "}]}, "messages[1].content: must not be empty", id="blank"
        ),
        pytest.param({"messages": [USER, {"role": "assistant"}]}, "messages[1].content: is missing", id="no-content"),
        pytest.param({"messages": [{**USER, "role": "bot"}]}, "messages[0].role: must be one of system,", id="role"),
        pytest.param({"messages": [USER]}, "messages: has no answer of the assistant", id="no-answer"),
        pytest.param({"messages": []}, "messages: must not be empty", id="no-messages"),
        pytest.param({"messages": "Hi"}, "messages: must hold JSON", id="messages-as-text"),
        pytest.param({"messages": {"role": "user"}}, "messages: must be an array, found object", id="no-array"),
        pytest.param({"messages": ["Hi"]}, "messages[0]: must be an object, found string", id="no-object"),
        pytest.param(
            {"messages": [{**USER, "content": "\ud800"}, ASSISTANT]}, "half of a surrogate pair", id="surrogate"
        ),
        pytest.param(
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": ["\ud800"]}}]}]},
            "messages[1].tool_calls[0].arguments: holds half of a surrogate pair",
            id="surrogate-in-a-call",
        ),
        pytest.param(
            {"messages": [USER, ASSISTANT], "tools": [{"\ud800": 1}]},
            "tools: holds half of a",
            id="surrogate-in-a-tool",
        ),
        pytest.param(
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 101 + "]" * 101}]},
                ]
            },
            "messages[1].tool_calls[0].arguments: is nested more than 100 levels deep",
            id="deep-call",
        ),
        pytest.param(
            {"messages": [{**USER, "content": [{"type": "image"}]}, ASSISTANT]},
            "messages[0].content[0].type: must be text, found 'image'",
            id="image",
        ),
        pytest.param(
            bad_call(arguments="{"), "messages[1].tool_calls[0].function.arguments: must hold JSON", id="arguments"
        ),
        pytest.param(
            bad_call(arguments="[1]"),
            "tool_calls[0].function.arguments: must be an object, found array",
            id="array-arguments",
        ),
        pytest.param(bad_call(name=7), "messages[1].tool_calls[0].function.name: must be a string", id="tool-name"),
        pytest.param(
            {"messages": [{**USER, "tool_calls": [CALL]}, ASSISTANT]},
            "messages[0].tool_calls: only the assistant",
            id="caller",
        ),
        pytest.param(
            {"prompt": "Hi", "completion": ""}, "completion: is missing; columns", id="mixed-without-messages"
        ),
        pytest.param({}, "messages: is missing; the row has no columns", id="empty-row"),
        pytest.param(
            {"messages": [USER, {**ASSISTANT, "weight": 0.5}]},
            "messages[1].weight: must be 0 or 1, found 0.5",
            id="half",
        ),
        pytest.param(
            {"messages": [USER, {**ASSISTANT, "weight": True}]},
            "messages[1].weight: must be 0 or 1, found true",
            id="w",
        ),
        pytest.param(
            {"messages": [USER, {**ASSISTANT, "train": 1}]}, "messages[1].train: must be true or false, found 1", id="t"
        ),
        pytest.param(
            {"messages": [USER, {**ASSISTANT, "train": True, "weight": 0}]},
            "messages[1].train: contradicts weight",
            id="contradiction",
        ),
        pytest.param(
            {"messages": [{**USER, "train": True}, ASSISTANT]},
            "messages[0].train: only the assistant's turns are trained",
            id="trained-user",
        ),
        pytest.param(
            {"messages": [USER, {**ASSISTANT, "weight": 0}]}, "messages: marks every answer with weight 0", id="nothing"
        ),
        pytest.param(
            {"text": "Once"}, "messages: is missing: the row looks like Text, but the data set is Messages", id="mixed"
        ),
    ],
)
def test_bad_row_in_a_messages_file(write: Write, row: dict[str, Any], said: str) -> None:
    path = write("train.jsonl", [{"messages": [USER, ASSISTANT]}, row, {"messages": [USER, ASSISTANT]}])
    examples, invalid, _ = convert(path)
    if "completion" in row:
        said = "messages: is missing: the row looks like PromptCompletion, but the data set is Messages"
    assert len(examples) == 2
    assert invalid.count == 1
    assert invalid.first[0].startswith("train.jsonl line 2: ")
    assert said in invalid.first[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        pytest.param({"prompt": "Hi", "completion": ""}, "completion: must not be empty", id="no-answer"),
        pytest.param({"instruction": "Hi", "output": None}, "output: must be a string, found null", id="alpaca-null"),
        pytest.param(
            {"instruction": "Hi", "output": "x", "input": 3}, "input: must be a string, found number", id="input"
        ),
        pytest.param(
            {"conversations": [{"from": "bing", "value": "x"}]}, "conversations[0].from: must be one of", id="from"
        ),
        pytest.param({"conversations": [{"from": "human"}]}, "conversations[0].value: is missing", id="value"),
        pytest.param(
            {"conversations": [{"from": "system", "value": ""}, {"from": "human", "value": " "}]},
            "conversations[1].value: must not be empty",
            id="only-a-system-turn-may-be-empty",
        ),
        pytest.param({"text": " \n"}, "text: must not be empty", id="blank-text"),
        pytest.param({"question": "x"}, "is in no known format; columns: question", id="no-format"),
    ],
)
def test_bad_row_of_the_other_formats(write: Write, row: dict[str, Any], said: str) -> None:
    examples, invalid, _ = convert(write("a.jsonl", [row]))
    assert examples == []
    assert said in invalid.first[0]


def test_columns_rename_and_say_what_is_meant(write: Write) -> None:
    row = {"messages": [USER, ASSISTANT], "question": "Hi", "answer": "Hello"}
    options = DataOptions(columns={"prompt": "question", "completion": "answer"})
    (example,), _, reader = convert(write("a.jsonl", [row]), options)
    assert example.messages == EXCHANGE
    assert reader.format is DatasetFormat.PROMPT_COMPLETION
    assert reader.ignored == {"messages"}


def test_a_column_that_does_not_exist_lists_those_that_do(write: Write) -> None:
    path = write("a.jsonl", [{"question": "Hi", "answer": "Hello"}])
    with pytest.raises(TuneryError) as caught:
        convert(path, DataOptions(columns={"prompt": "query", "completion": "reply"}))
    assert caught.value.reason is FailureReason.DATASET_INVALID
    assert caught.value.message == (
        "spec.dataset.columns.prompt: a.jsonl has no column 'query'; "
        "spec.dataset.columns.completion: a.jsonl has no column 'reply'; columns: question, answer"
    )


def test_an_unknown_field_of_columns_is_an_invalid_spec(write: Write) -> None:
    with pytest.raises(TuneryError, match=r"spec\.dataset\.columns: there is no field 'promt'; fields: messages"):
        convert(write("a.jsonl", [{"a": 1}]), DataOptions(columns={"promt": "a"}))


def test_the_limit_counts_all_and_names_five() -> None:
    rows = InvalidRows(limit=6)
    for number in range(1, 8):
        rows.add(RowPlace("a.jsonl", number), RowError("text", "is missing"))
    with pytest.raises(TuneryError) as caught:
        rows.check(valid=93)
    message = caught.value.message
    assert message.startswith(
        "7 of 100 rows are invalid, spec.dataset.maxInvalidRows allows 6: a.jsonl line 1: text: is"
    )
    assert message.endswith("text: is missing (the same in lines 2, 3, 4, 5 and 2 more)")


def test_what_is_wrong_with_several_rows_is_said_once() -> None:
    rows = InvalidRows(limit=0)
    for number, why in enumerate(["is missing", "is missing", "must not be empty", "is missing", "is missing"], 1):
        rows.add(RowPlace("a.jsonl", number), RowError("text", why))
    rows.add(RowPlace("b.jsonl", 1), RowError("text", "is missing"))
    with pytest.raises(TuneryError) as caught:
        rows.check(valid=94)
    assert caught.value.message.endswith(
        ": a.jsonl line 1: text: is missing (the same in lines 2, 4, 5); a.jsonl line 3: text: must not be empty; ..."
    )
    assert caught.value.remedies == remedies_for(FailureReason.DATASET_INVALID)


def test_where_no_row_has_the_columns_the_remedy_is_to_name_them() -> None:
    rows = InvalidRows(limit=0)
    for number in (1, 2):
        rows.add(RowPlace("a.jsonl", number), RowError("", "is in no known format", columns=True))
    with pytest.raises(TuneryError) as caught:
        rows.check(valid=0)
    correct, name = caught.value.remedies
    assert (correct.action, name.action, name.fields) == (Action.RETRY, Action.RECREATE, ["dataset.columns"])
    assert "{prompt: question, completion: answer}" in name.text
    with pytest.raises(TuneryError) as caught:
        rows.check(valid=1)
    usual = remedies_for(FailureReason.DATASET_INVALID)
    assert caught.value.remedies == usual, "the valid row shows that the columns are known"
    rows.add(RowPlace("a.jsonl", 3), RowError("text", "is missing"))
    with pytest.raises(TuneryError) as caught:
        rows.check(valid=0)
    assert caught.value.remedies == usual, "not every row lacks the columns"


def test_no_valid_row_is_refused_even_when_bad_rows_are_allowed() -> None:
    rows = InvalidRows(limit=10)
    with pytest.raises(TuneryError, match=r"spec\.dataset: has no row$") as caught:
        rows.check(valid=0)
    assert caught.value.remedies == (retry("Add rows"),), "there are no lines to correct"
    rows.add(RowPlace("a.jsonl", 1), RowError("text", "is missing"))
    with pytest.raises(TuneryError, match=r"spec\.dataset: has no valid row: a\.jsonl line 1: text: is missing"):
        rows.check(valid=0)


def test_the_digest_is_of_what_trains() -> None:
    one = Example(RowPlace("a", 1), messages=({"role": "user", "content": "Hi"},))
    same = Example(RowPlace("b", 9), messages=({"content": "Hi", "role": "user"},))
    assert one.digest() == same.digest()
    assert one.digest() != Example(RowPlace("a", 1), text="Hi").digest()
