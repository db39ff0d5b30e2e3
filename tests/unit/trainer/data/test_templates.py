"""Every chat template that TRL ships: each turn and call of a row is learned, or the row is refused by name."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tunery_api.training import Loss
from tunery_trainer.data.encode import Encoder
from tunery_trainer.data.render import RenderedRow, Renderer
from tunery_trainer.data.rows import Example, RowError, RowPlace

from kit.tiny_models import build_tokenizer

_TRL = importlib.util.find_spec("trl")
assert _TRL is not None
assert _TRL.origin is not None
TEMPLATES = sorted((Path(_TRL.origin).parent / "chat_templates").glob("*.jinja"))
_STEMS = ("cohere", "deepseekv3", "gemma3", "glm4moe", "gptoss", "llama3_1", "phi3", "qwen2_5", "qwen3")
COMMON = [f"{stem}-*" for stem in _STEMS]
MARK = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|</?[a-z_]+>")

Messages = tuple[dict[str, Any], ...]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def chat(word: str) -> Messages:
    return (
        user(f"What is a {word}?"),
        assistant(f"A {word} is an animal."),
        user("How tall?"),
        assistant("About 1.7 metres."),
        user("How heavy?"),
        assistant(f'Up to 200 kg, "roughly", says the {word}.'),
    )


def thoughtful(word: str) -> Messages:
    return tuple(
        {**message, "reasoning_content": f"Thought {index} of a {word}."} if message["role"] == "assistant" else message
        for index, message in enumerate(chat(word))
    )


def thinking_aloud(word: str) -> Messages:
    return tuple(
        assistant(f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}")
        if message["role"] == "assistant"
        else message
        for message in thoughtful(word)
    )


def called(city: str, days: int) -> dict[str, Any]:
    arguments = {"city": city, "days": days, "units": {"metric": True, "names": ["Celsius"]}}
    call = {"id": "abcde1234", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    return assistant("", tool_calls=[call])


def tools_used(word: str) -> Messages:
    result = {"role": "tool", "name": "get_weather", "tool_call_id": "abcde1234"}
    return (
        user(f"Weather in {word}?"),
        called(f"{word} 🙂", 3),
        {**result, "content": "sunny"},
        assistant(f"It is sunny in {word}."),
        user("And in Bern?"),
        called(f'Bern "old"\ntown of {word}', 14),
        {**result, "content": "rain"},
        assistant("It rains in Bern."),
    )


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city."},
                "days": {"type": "integer", "description": "How many."},
                "units": {"type": "object", "description": "In which."},
            },
            "required": ["city"],
        },
    },
}
SHAPES = {"chat": chat, "thoughtful": thoughtful, "thinking-aloud": thinking_aloud, "tools": tools_used}


def tokenizer_of(path: Path) -> PreTrainedTokenizerBase:
    """A tokenizer that has the template, and what looks like a special token in it as one."""
    template = path.read_text()
    tokenizer = build_tokenizer(template, eos="<|endoftext|>", marks=sorted(set(MARK.findall(template))))
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def example(shape: str, word: str) -> Example:
    return Example(RowPlace("a", 1), messages=SHAPES[shape](word), tools=(TOOL,) if shape == "tools" else ())


def learned(tokenizer: PreTrainedTokenizerBase, row: RenderedRow) -> list[str]:
    """The stretches of tokens that count, as text."""
    stretches: list[str] = []
    for encoded in Encoder(tokenizer, 4096).encode(row.examples):
        marks = "".join("x" if label != -100 else " " for label in encoded.labels)
        found = [encoded.input_ids[part.start() : part.end()] for part in re.finditer("x+", marks)]
        assert len(found) == encoded.turns
        stretches += [tokenizer.decode(ids.tolist()) for ids in found]
    return stretches


def plain(text: str) -> str:
    """Without what templates write differently: quotes, escapes, white space."""
    return re.sub(r"\\n|[\s\\\"']", "", text)


def parts(message: dict[str, Any]) -> list[str]:
    """What must be learned of an answer."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    values = [str(value) for call in calls for value in (call["name"], *list(call["arguments"].values())[:2])]
    return [plain(part) for part in (message["content"].rpartition("</think>")[2], *values)]


def rendered(renderer: Renderer, row: Example) -> RenderedRow | None:
    """What the row became; None where it was refused by name."""
    try:
        return renderer.render(row)
    except RowError as error:
        said = str(error)
    assert re.match(r"messages(\[\d+\](\.content|\.tool_calls\[0\])?)?: the chat template ", said), said
    return None


def count_calls(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the template is asked for from here on."""
    calls: list[str] = []
    apply = tokenizer.apply_chat_template

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(apply(*arguments, **options))
        return calls[-1]

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    return calls


def check_prompts(tokenizer: PreTrainedTokenizerBase, row: Example, found: RenderedRow) -> None:
    """Each turn follows the very text that the model is asked with, and ends where the conversation up to it does."""
    spans = [(text.text, start, end) for text in found.examples for start, end in text.spans or ()]
    starts, ends = [text[:start] for text, start, _ in spans], [text[:end].rstrip() for text, _, end in spans]
    for index in row.trained:
        prompt = tokenizer.apply_chat_template(
            list(row.messages[:index]), tools=list(row.tools) or None, add_generation_prompt=True, tokenize=False
        )
        # An opening may hold more than a finished turn shows (`<think>`), never less.
        lengths = [len(start) for start in starts if prompt.startswith(start)]
        assert max(lengths, default=0) >= len(prompt) - len("<think>\n\n</think>\n\n"), index
        closed = tokenizer.apply_chat_template(
            list(row.messages[: index + 1]), tools=list(row.tools) or None, tokenize=False
        )
        assert closed.rstrip() in ends, index


@pytest.mark.slow(fast=COMMON)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_turn_is_learned_as_it_is_asked_for_or_the_row_is_refused(path: Path, shape: str) -> None:
    tokenizer, row = tokenizer_of(path), example(shape, "llama")
    found = rendered(Renderer(tokenizer, Loss.COMPLETION), row)
    if found is None:
        return
    stretches = [plain(stretch) for stretch in learned(tokenizer, found)]
    answers = [message for message in row.messages if message["role"] == "assistant"]
    assert len(stretches) == len(answers)
    for answer in answers:
        assert any(all(part in stretch for part in parts(answer)) for stretch in stretches), (answer, stretches)
    assert plain(row.messages[0]["content"]) not in "".join(stretches)
    check_prompts(tokenizer, row, found)


@pytest.mark.slow(fast=COMMON)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_second_row_of_a_shape_is_rendered_as_the_first_would_be(
    path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of(path)
    renderer, row = Renderer(tokenizer, Loss.COMPLETION), example(shape, "dromedary")
    expected = rendered(Renderer(tokenizer, Loss.COMPLETION), row)
    rendered(renderer, example(shape, "llama"))
    calls = count_calls(tokenizer, monkeypatch)
    assert rendered(renderer, row) == expected
    # Some templates write calls in a way that differs from row to row, such as with their arguments sorted.
    assert expected is None or shape == "tools" or len(calls) == len(expected.examples)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_5_think", "gptoss", "glm4moe", "llama3_1"])
def test_rows_with_tools_need_one_call_each_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of(next(path for path in TEMPLATES if path.stem == name))
    renderer = Renderer(tokenizer, Loss.COMPLETION)
    expected = renderer.render(example("tools", "Oslo"))
    calls = count_calls(tokenizer, monkeypatch)
    renderer.render(example("tools", "Bergen"))
    assert len(calls) == len(expected.examples)


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "gemma"])
def test_rows_with_white_space_around_their_texts_need_one_call_each_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of(next(path for path in TEMPLATES if path.stem == name))
    renderer = Renderer(tokenizer, Loss.COMPLETION)
    rows = [
        Example(RowPlace("rows", at), messages=(user(f"{before}Who is {at}?{after}"), assistant(f"The {at}.")))
        for at, (before, after) in enumerate([("", ""), ("", "\n"), ("\n ", ""), ("", "\xa0")] * 3)
    ]
    expected = [Renderer(tokenizer, Loss.COMPLETION).render(row) for row in rows]
    for row in rows[:4]:
        renderer.render(row)
    calls = count_calls(tokenizer, monkeypatch)
    assert [renderer.render(row) for row in rows] == expected
    assert len(calls) == len(rows)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_5_think", "gptoss", "glm4moe", "llama3_1", "lfm2_v2"])
def test_the_families_that_call_tools_learn_to(name: str) -> None:
    """So that refusing everything would not pass."""
    tokenizer = tokenizer_of(next(path for path in TEMPLATES if path.stem == name))
    stretches = learned(tokenizer, Renderer(tokenizer, Loss.COMPLETION).render(example("tools", "Oslo")))
    assert sum("get_weather" in stretch for stretch in stretches) == 2


@pytest.mark.parametrize(
    ("name", "shape", "examples", "lost"),
    [
        ("qwen3", "thoughtful", 3, 0),
        ("qwen3", "thinking-aloud", 3, 0),
        ("glm4moe", "thoughtful", 3, 0),
        ("gptoss", "thoughtful", 3, 0),
        ("phi3", "chat", 3, 0),
        ("qwen2_5", "chat", 1, 0),
        ("deepseek_r1_distill", "thinking-aloud", 1, 3),
        ("llama3_1", "thoughtful", 1, 3),
    ],
)
def test_reasoning_is_learned_or_counted(name: str, shape: str, examples: int, lost: int) -> None:
    tokenizer = tokenizer_of(next(path for path in TEMPLATES if path.stem == name))
    found = Renderer(tokenizer, Loss.COMPLETION).render(example(shape, "llama"))
    assert (len(found.examples), found.lost_reasoning) == (examples, lost)
    stretches = json.dumps(learned(tokenizer, found))
    assert [f"Thought {index}" in stretches for index in (1, 3, 5)] == [shape != "chat" and not lost] * 3
