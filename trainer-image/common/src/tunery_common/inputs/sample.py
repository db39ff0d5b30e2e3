"""A tiny model and rows for it, made on the spot and put into a bucket: what `helm test` trains.

`python -m tunery_common.inputs.sample s3://bucket/prefix [Secret]` writes `model/` and `rows.jsonl` below the prefix,
with the Secret that is mounted where jobs have that of their output. The weights are random, of 370 KB: what is learned
is nothing, what is shown is the way.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tunery_api.failures import sentences
from tunery_api.names import SECRETS_DIR
from tunery_api.runspec import Purpose
from tunery_common.errors import TuneryError
from tunery_common.storage.authorities import trust_platform
from tunery_common.storage.credentials import S3_KEYS, ambient, from_secret
from tunery_common.storage.opening import open_store

MODEL: Final = "model"
ROWS: Final = "rows.jsonl"
_SEED: Final = 20
_HIDDEN, _INNER, _LAYERS, _HEADS, _POSITIONS = 64, 128, 2, 4, 512
_KEYS: Final = _HIDDEN // 2
"""Width of keys and values: two heads share one."""
_SPECIAL: Final = ("<|pad|>", "<|im_start|>", "<|im_end|>")
_VOCABULARY: Final = 272
"""The bytes and the special tokens, and some rows that no token has, as real models have them."""
_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sample_model() -> dict[str, bytes]:
    """Return the files of a model of llama's architecture with a tokenizer of bytes; the same each time."""
    return {
        "config.json": _json(_config()),
        "model.safetensors": _safetensors(_weights()),
        "tokenizer.json": _json(_tokenizer()),
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": _SPECIAL[0],
                "bos_token": _SPECIAL[1],
                "eos_token": _SPECIAL[2],
                "chat_template": _TEMPLATE,
                "model_max_length": _POSITIONS,
            }
        ),
    }


def sample_rows(count: int = 64) -> bytes:
    """Return rows of chat, as JSON lines."""
    rows = (
        [
            {"role": "user", "content": f"What is {number} plus {number + 1}?"},
            {"role": "assistant", "content": f"It is {2 * number + 1}."},
        ]
        for number in range(count)
    )
    return b"".join(_json({"messages": messages}) + b"\n" for messages in rows)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS // 2,
        "max_position_embeddings": _POSITIONS,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "vocab_size": _VOCABULARY,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }


def _weights() -> Iterator[tuple[str, tuple[int, ...], array[float]]]:
    """Yield every tensor: its name, its shape, its values row by row."""
    draw = random.Random(_SEED)  # noqa: S311 - nothing is to be kept secret

    def drawn(name: str, *shape: int) -> tuple[str, tuple[int, ...], array[float]]:
        return name, shape, array("f", (draw.gauss(0.0, 0.05) for _ in range(shape[0] * shape[1])))

    def ones(name: str) -> tuple[str, tuple[int, ...], array[float]]:
        return name, (_HIDDEN,), array("f", [1.0] * _HIDDEN)

    yield drawn("model.embed_tokens.weight", _VOCABULARY, _HIDDEN)
    for layer in (f"model.layers.{number}" for number in range(_LAYERS)):
        yield ones(f"{layer}.input_layernorm.weight")
        yield ones(f"{layer}.post_attention_layernorm.weight")
        for name, width in (("q", _HIDDEN), ("k", _KEYS), ("v", _KEYS), ("o", _HIDDEN)):
            yield drawn(f"{layer}.self_attn.{name}_proj.weight", width, _HIDDEN)
        for name, shape in (("gate", (_INNER, _HIDDEN)), ("up", (_INNER, _HIDDEN)), ("down", (_HIDDEN, _INNER))):
            yield drawn(f"{layer}.mlp.{name}_proj.weight", *shape)
    yield ones("model.norm.weight")


def _safetensors(tensors: Iterator[tuple[str, tuple[int, ...], array[float]]]) -> bytes:
    """Return a file of safetensors: the length of its head, its head, its values in little-endian order."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, shape, values in tensors:
        if sys.byteorder == "big":
            values.byteswap()
        begin = len(body)
        body += values.tobytes()
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(body)]}
    told = _json(head)
    told += b" " * (-len(told) % 8)
    return struct.pack("<Q", len(told)) + told + bytes(body)


def _tokenizer() -> dict[str, Any]:
    tokens = [*_SPECIAL, *_alphabet()]
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text, "special": True, **plain} for number, text in enumerate(_SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": by_bytes,
        "post_processor": None,
        "decoder": by_bytes,
        "model": {"type": "BPE", "vocab": {text: number for number, text in enumerate(tokens)}, "merges": []},
    }


def _alphabet() -> list[str]:
    """Return the characters that stand for the 256 bytes, as GPT-2 chose them: none of them is white space."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = (byte for byte in range(256) if byte not in set(shown))
    return [*map(chr, shown), *(chr(256 + number) for number, _ in enumerate(hidden))]


def main(arguments: Sequence[str]) -> int:
    """Put model and rows where the first argument says; return the exit code."""
    uri, secret = arguments[0], arguments[1] if len(arguments) > 1 else ""
    try:
        trust_platform()
        folder = Path(SECRETS_DIR, Purpose.OUTPUT)
        credentials = from_secret(folder, secret, S3_KEYS, "test.outputSecret") if secret else ambient()
        place = open_store(uri.rstrip("/"), credentials, "test.outputUri")
        files = {f"{MODEL}/{name}": data for name, data in sample_model().items()} | {ROWS: sample_rows()}
        for name, data in files.items():
            place.store.put_bytes(place.key(name), data)
    except TuneryError as error:
        print(f"{error}\n{sentences(error.remedies)}", file=sys.stderr)
        return int(error.exit_code)
    print(f"A model of {len(files[f'{MODEL}/model.safetensors'])} bytes and its rows lie at {place.uri}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
