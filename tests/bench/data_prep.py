"""Rows prepared each second: our single pass against TRL's maps on the same rows, tokenizer and packing in one run."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import yaml
from chatterbot_corpus import corpus
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.prepare import prepare

from cluster.model import ensure as ensure_model

MAX_LENGTH = 2048


def main() -> None:
    """Print one JSON line: rows/s of both (median of the repeats), their ratio, and what they packed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(ensure_model())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_rows(folder, arguments.rows)
        print(json.dumps(compare(path, folder, tokenizer, arguments.repeats)))


def write_rows(folder: Path, count: int) -> Path:
    """Prompts and completions of one to six sentences, drawn from the corpus; all different."""
    sentences = [
        str(turn)
        for file in sorted(Path(corpus.DATA_DIRECTORY, "english").glob("*.yml"))
        for conversation in yaml.safe_load(file.read_text())["conversations"]
        for turn in conversation
        if str(turn).strip()
    ]
    drawn = random.Random(42)

    def text() -> str:
        return " ".join(drawn.choices(sentences, k=drawn.randint(1, 6)))

    path = folder / "train.jsonl"
    rows = [{"prompt": f"{number}. {text()}", "completion": text()} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def compare(path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, repeats: int) -> dict[str, Any]:
    """Both, one after the other, `repeats` times; from the file to packed rows on disk."""
    datasets.disable_caching()
    datasets.disable_progress_bars()
    theirs = trl_preparation(path, folder, tokenizer)
    seconds: dict[str, list[float]] = {"ours": [], "trl": []}
    counts: dict[str, int] = {}
    for number in range(repeats):
        ours = partial(prepare, path, DataOptions(max_length=MAX_LENGTH), tokenizer, folder / f"cache-{number}")
        prepared = timed(ours, seconds["ours"])
        packed = timed(theirs, seconds["trl"])
        counts = {"ours": len(prepared.train) + len(prepared.evaluation), "trl": len(packed)}
    rows = sum(1 for _ in path.open())
    rate = {name: round(rows / statistics.median(values)) for name, values in seconds.items()}
    ratio = statistics.median(seconds["trl"]) / statistics.median(seconds["ours"])
    return {"rows": rows, "rows_per_second": rate, "ratio": round(ratio, 2), "packed_rows": counts, "seconds": seconds}


def trl_preparation(path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[[], Any]:
    """TRL's own preparation of the same rows as chats, with the loss on the completion."""

    def load() -> Any:
        loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "hub"))
        return loaded.map(as_chat)

    config = SFTConfig(
        output_dir=str(folder / "out"), packing=True, max_length=MAX_LENGTH, completion_only_loss=True,
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


def timed(work: Callable[[], Any], seconds: list[float]) -> Any:
    """The result of `work`; its wall time is appended to `seconds`."""
    start = time.perf_counter()
    result = work()
    seconds.append(time.perf_counter() - start)
    return result


if __name__ == "__main__":
    main()
