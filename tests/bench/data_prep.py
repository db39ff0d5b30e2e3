"""Rows prepared each second beside TRL's own maps, what packing fills and loses, and what a hit in the cache saves.

Both start from the same file and tokenizer and end with packed rows on the disk, in turn, in one run. TRL teaches the
completion of a pair, or of a chat what `assistant_only_loss` marks, for which the template says {% generation %}.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import datasets
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.prepare import PreparedData, prepare

from bench.sentences import sentences
from tools.cluster.model import ensure as ensure_model

MAX_LENGTH: Final = 2048
OPTIONS: Final = DataOptions(max_length=MAX_LENGTH)
MARKED: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML that marks what is taught."""


def main() -> None:
    """Print two JSON lines for each kind of rows: beside TRL, and what packing and cache do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--packed-rows", type=int, default=12_000, help="of which fill, loss and cache are measured")
    parser.add_argument("--kinds", nargs="+", choices=("pairs", "chats"), default=["pairs", "chats"])
    arguments = parser.parse_args()
    datasets.disable_caching()
    datasets.disable_progress_bars()
    for kind in arguments.kinds:
        tokenizer = AutoTokenizer.from_pretrained(ensure_model())
        if kind == "chats":
            tokenizer.chat_template = MARKED
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = write_rows(folder, arguments.rows, kind)
            found = compare(path, folder, tokenizer, arguments.repeats)
            print(json.dumps({"kind": kind} | found), flush=True)
            more = write_rows(folder, arguments.packed_rows, kind)
            kept = PreparedCache(more, folder / "kept", tokenizer).figures()
            print(json.dumps({"kind": kind, "rows": arguments.packed_rows} | kept), flush=True)


def write_rows(folder: Path, count: int, kind: str) -> Path:
    """Texts of one to six sentences, drawn from the corpus, all different: pairs, or chats of one to four turns."""
    known, drawn = sentences(), random.Random(42)

    def text() -> str:
        return " ".join(drawn.choices(known, k=drawn.randint(1, 6)))

    def chat(number: int) -> list[dict[str, str]]:
        turns = [(("user", f"{number}.{turn} {text()}"), ("assistant", text())) for turn in range(drawn.randint(1, 4))]
        return [{"role": role, "content": content} for turn in turns for role, content in turn]

    path = folder / "train.jsonl"
    rows: list[dict[str, Any]] = (
        [{"messages": chat(number)} for number in range(count)]
        if kind == "chats"
        else [{"prompt": f"{number}. {text()}", "completion": text()} for number in range(count)]
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def compare(path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, repeats: int) -> dict[str, Any]:
    """Both, in turn, `repeats` times; from the file to packed rows on disk. CPU is that of all threads."""
    theirs = trl_preparation(path, folder, tokenizer)
    seconds: dict[str, list[float]] = {"ours": [], "trl": []}
    cpu: dict[str, list[float]] = {"ours": [], "trl": []}
    counts: dict[str, int] = {}
    for number in range(repeats):
        ours = partial(prepare, path, OPTIONS, tokenizer, folder / f"cache-{number}")
        pair: list[tuple[str, Callable[[], Any]]] = [("ours", ours), ("trl", theirs)]
        for name, work in pair if number % 2 else reversed(pair):
            start = time.process_time()
            made = timed(work, seconds[name])
            cpu[name].append(time.process_time() - start)
            counts[name] = len(made.train) + len(made.evaluation) if name == "ours" else len(made)
    rows = sum(1 for _ in path.open())
    return {
        "rows": rows,
        "rows_per_second": {name: round(rows / statistics.median(values)) for name, values in seconds.items()},
        "ratio": ratio(seconds),
        "rows_per_cpu_second": {name: round(rows / statistics.median(values)) for name, values in cpu.items()},
        "cpu_ratio": ratio(cpu),
        "packed_rows": counts,
    }


def ratio(seconds: dict[str, list[float]]) -> float:
    """Return the median of the pairs: how many times as long TRL took."""
    return round(statistics.median(trl / ours for ours, trl in zip(*seconds.values(), strict=True)), 2)


def trl_preparation(path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[[], Any]:
    """TRL's own preparation of the same rows as chats."""
    chats = "messages" in json.loads(path.open().readline())

    def load() -> Any:
        loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "hub"))
        return loaded if chats else loaded.map(as_chat)

    config = SFTConfig(
        output_dir=str(folder / "out"), packing=True, packing_strategy="bfd", max_length=MAX_LENGTH,
        completion_only_loss=not chats, assistant_only_loss=chats,
        use_cpu=True, bf16=False, report_to=[], eos_token=tokenizer.eos_token,
    )  # fmt: skip
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size))
    trainer = SFTTrainer(model, config, train_dataset=load().select(range(8)), processing_class=tokenizer)
    return lambda: trainer._prepare_dataset(load(), tokenizer, config, True, None, "train")


def as_chat(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """A row as TRL's conversational prompt and completion."""
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


class Counting:
    """A tokenizer, or the one below it, that counts the texts which it is given."""

    def __init__(self, counted: Any, texts: list[int]) -> None:
        self._counted = counted
        self._texts = texts

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._counted, name)
        return Counting(found, self._texts) if name == "backend_tokenizer" else found

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Tokenize."""
        self._texts.append(len(text))
        return self._counted(text, **options)

    def encode_batch_fast(self, text: list[str], **options: Any) -> Any:
        """Tokenize."""
        self._texts.append(len(text))
        return self._counted.encode_batch_fast(text, **options)


class PreparedCache:
    """Rows that are prepared once, and found again."""

    def __init__(self, path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._path = path
        self._folder = folder
        self._texts: list[int] = []
        self._tokenizer = Counting(tokenizer, self._texts)

    def figures(self) -> dict[str, Any]:
        """Return what packing has filled and lost, and what a miss and a hit take."""
        seconds: dict[str, list[float]] = {"miss": [], "hit": []}
        texts: dict[str, int] = {}
        for name in seconds:
            self._texts.clear()
            prepared = timed(partial(self._prepare, OPTIONS, "entry"), seconds[name])
            if prepared.from_cache != (name == "hit"):
                raise SystemExit(f"what should have been a {name} was none")
            texts[name] = sum(self._texts)
        single = self._prepare(dataclasses.replace(OPTIONS, packing=False), "single")
        cache = {name: round(values[0], 3) for name, values in seconds.items()}
        return packed(prepared, single) | {
            "cache_seconds": cache,
            "cache_ratio": round(cache["miss"] / cache["hit"]),
            "texts_tokenised": texts,
        }

    def _prepare(self, options: DataOptions, name: str) -> PreparedData:
        return prepare(self._path, options, self._tokenizer, self._folder / name)


def packed(prepared: PreparedData, single: PreparedData) -> dict[str, Any]:
    """Return how full packed rows are, and which examples of the rows one by one are missing or new in them."""
    found: Counter[bytes] = Counter()
    tokens = 0
    for row in prepared.train.with_format("numpy"):
        start = 0
        for length in row["seq_lengths"].tolist():
            part = slice(start, start + length)
            found[row["input_ids"][part].tobytes() + row["labels"][part].tobytes()] += 1
            start += length
        tokens += start
    wanted = Counter(row["input_ids"].tobytes() + row["labels"].tobytes() for row in single.train.with_format("numpy"))
    whole = sum(len(row) for row in single.train.with_format("numpy")["input_ids"])
    return {
        "fill": round(tokens / (MAX_LENGTH * len(prepared.train)), 5),
        "tokens_in": whole,
        "tokens_out": tokens,
        "examples_lost_or_new": (wanted - found).total() + (found - wanted).total(),
    }


def timed(work: Callable[[], Any], seconds: list[float]) -> Any:
    """The result of `work`; its wall time is appended to `seconds`."""
    start = time.perf_counter()
    result = work()
    seconds.append(time.perf_counter() - start)
    return result


if __name__ == "__main__":
    main()
