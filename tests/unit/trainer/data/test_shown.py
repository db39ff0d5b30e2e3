"""What a template must show of a turn: never so strict as to refuse a right row, never so lax as to miss a lost one."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery_trainer.data.required_text import check_shown
from tunery_trainer.data.rows import RowError

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
LEAF = st.one_of(TEXT, st.booleans(), st.none(), st.integers(-(10**9), 10**9), st.floats(-1e6, 1e6, width=32))
VALUE = st.recursive(
    LEAF, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3))
)
ARGUMENTS = st.dictionaries(TEXT, VALUE, max_size=4)

WRITINGS: dict[str, Callable[[Any], str]] = {
    "json": lambda value: json.dumps(value, ensure_ascii=False),
    "ascii": json.dumps,
    "indented-and-sorted": lambda value: json.dumps(value, indent=4, sort_keys=True),
    "json-in-json": lambda value: json.dumps(json.dumps(value)),
    "html": lambda value: html.escape(json.dumps(value, ensure_ascii=False)),
    "python": repr,
    "xml": lambda value: "\n".join(f"<parameter={key}>\n{_xml(item)}\n</parameter>" for key, item in value.items()),
}


def _xml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def called(arguments: dict[str, Any], content: str = "") -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": function}]}


@pytest.mark.parametrize("writing", WRITINGS)
@given(arguments=ARGUMENTS)
def test_no_writing_of_a_call_is_refused(writing: str, arguments: dict[str, Any]) -> None:
    shown = f"<tool_call>get_weather {WRITINGS[writing](arguments)}</tool_call>"
    assert check_shown(called(arguments), "messages[1]", shown)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("<|im_end|>", r"messages\[1\]\.tool_calls\[0\]: the chat template does not show the name 'get_weather'"),
        ('{"name": "get_weather"}', r'the chat template does not show the argument "city" of this call'),
        ('get_weather(city="Bern", days=3)', 'the argument "Oslo"'),
        ('get_weather(city="Oslo", days=4)', "the argument 3"),
        ('get_weather(city="Oslo")', 'the argument "days"'),
    ],
)
def test_a_lost_call_is_named(shown: str, said: str) -> None:
    with pytest.raises(RowError, match=said):
        check_shown(called({"city": "Oslo", "days": 3}), "messages[1]", shown)


def test_each_of_several_calls_must_be_there() -> None:
    message = called({"city": "Oslo"})
    message["tool_calls"].append({"type": "function", "function": {"name": "get_time", "arguments": {}}})
    with pytest.raises(RowError, match=r"tool_calls\[1\]: the chat template does not show the name 'get_time'"):
        check_shown(message, "messages[1]", 'get_weather(city="Oslo")')


@pytest.mark.parametrize(
    ("message", "shown", "thought"),
    [
        ({"content": "Yes."}, "Yes.<|im_end|>", True),
        ({"content": " Yes,\n\n indeed. "}, "Yes,\nindeed.", True),
        ({"content": "<think>\nhm\n</think>\n\nYes."}, "<think>hm</think>Yes.", True),
        ({"content": "<think>\nhm\n</think>\n\nYes."}, "Yes.", False),
        ({"content": "Yes.", "reasoning_content": "hm"}, "<|analysis|>hm<|final|>Yes.", True),
        ({"content": "Yes.", "reasoning_content": "hm"}, "Yes.", False),
    ],
)
def test_reasoning_that_is_left_out_is_told(message: dict[str, Any], shown: str, thought: bool) -> None:
    assert check_shown({"role": "assistant", **message}, "messages[1]", shown) is thought


@pytest.mark.parametrize("content", ["No.", "<think>hm</think>No."])
def test_a_lost_answer_is_named(content: str) -> None:
    with pytest.raises(RowError, match=r"messages\[1\]\.content: the chat template does not show this answer"):
        check_shown({"role": "assistant", "content": content}, "messages[1]", "<think>hm</think><|im_end|>")


def test_a_turn_of_which_nothing_shows_is_named() -> None:
    with pytest.raises(RowError, match=r"messages\[1\]: the chat template shows nothing of this turn"):
        check_shown({"role": "assistant", "content": "<think>hm</think>"}, "messages[1]", "<|im_end|>")
