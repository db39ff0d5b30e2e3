"""The model of the stand-in engine: a base with PEFT's adapters beside each other, and one pass for rows of several."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

IDLE = "idle"
"""An adapter that no row uses: with it every layer can tell rows apart from the beginning."""
BASE_ROW = "__base__"
FACTORS = re.compile(r"\.lora_(A|B)\.weight$|\.lora_embedding_(A|B)$")
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


class NoAdapter(Exception):
    """There is no adapter in the folder."""


class Unsupported(Exception):
    """vLLM would not take this adapter."""


@dataclass(eq=False)
class Row:
    """One request in the batch; `number` and `folder` are its adapter's."""

    tokens: list[int]
    number: int | None
    folder: str
    limit: int
    temperature: float
    top: int
    prompt_top: int | None
    generator: torch.Generator | None
    ends: frozenset[int]
    asked: int = 0
    chosen: list[Chosen] = field(default_factory=list)
    prompt: list[Chosen | None] | None = None


@dataclass(frozen=True)
class Chosen:
    """A token with its log-probability and rank, and the likeliest ones: log-probability by token, best first."""

    token: int
    logprob: float
    rank: int
    top: dict[int, float]
    finish: str | None = None


class MixedModel:
    """A base and those of its adapters that were used last, at most `room` of them."""

    def __init__(self, folder: Path, max_rank: int, room: int) -> None:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        ends = base.generation_config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.length: int = base.config.max_position_embeddings
        self.modules = {name.rsplit(".", 1)[-1] for name, module in base.named_modules() if _is_layer(module)}
        idle = LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model: PeftModel = get_peft_model(base, idle, adapter_name=IDLE).eval()
        self.max_rank, self.room = max_rank, room
        self.held: OrderedDict[int, None] = OrderedDict()

    def load(self, number: int, folder: str) -> None:
        """Hold the adapter of a folder, and let go of the one that was used longest ago where there is no room.

        Raises NoAdapter, Unsupported, or what PEFT says to weights that do not fit.
        """
        if number in self.held:
            self.held.move_to_end(number)
            return
        check(Path(folder), self.modules, self.max_rank)
        self.model.load_adapter(folder, adapter_name=f"a{number}")
        self.model.eval()
        if len(self.held) == self.room:
            oldest, _ = self.held.popitem(last=False)
            self.model.delete_adapter(f"a{oldest}")
        self.held[number] = None

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> None:
        """Give each row its next token, all of them in one pass.

        Padding lies to the right, where no token looks: it changes nothing. Nothing is kept between passes.
        """
        longest = max(len(row.tokens) for row in rows)
        ids = torch.tensor([row.tokens + [0] * (longest - len(row.tokens)) for row in rows])
        names = [BASE_ROW if row.number is None else f"a{row.number}" for row in rows]
        logits = self.model(input_ids=ids, adapter_names=names, use_cache=False).logits
        for row, scores in zip(rows, logits, strict=True):
            known = len(row.tokens)
            if row.prompt is None and row.prompt_top is not None:
                scored = scores[: known - 1].float().log_softmax(-1)
                pairs = zip(scored, row.tokens[1:], strict=True)
                row.prompt = [None, *(_chosen(one, token, row.prompt_top) for one, token in pairs)]
            row.chosen.append(_next(row, scores[known - 1].float()))
            row.tokens.append(row.chosen[-1].token)


def check(folder: Path, modules: set[str], max_rank: int) -> None:
    """Raise NoAdapter or Unsupported for what vLLM does not take either."""
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    except FileNotFoundError as error:
        raise NoAdapter(str(folder)) from error
    if missing := {"r", "lora_alpha", "target_modules"} - config.keys():
        raise Unsupported(f"Missing required configuration fields: {missing}")
    wrong = [word for word in _NEVER if config.get(word)]
    wrong += [name for name in config.get("modules_to_save") or [] if name not in ("classifier", "score")]
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        wrong.append(f"init_lora_weights={start}")
    if config.get("bias", "none") != "none":
        wrong.append("bias")
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > max_rank:
        wrong.append(f"LoRA rank {rank} is greater than max_lora_rank {max_rank}.")
    if wrong:
        raise Unsupported(" ".join(wrong))
    if not (folder / "adapter_model.safetensors").is_file():
        raise Unsupported(f"{folder} doesn't contain tensors")
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        keys = set(weights.keys())
    if strange := {key for key in keys if FACTORS.sub("", key).rsplit(".", 1)[-1] not in modules}:
        raise Unsupported(f"expected target modules in {modules} but received {sorted(strange)}")


_NEVER = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")


def _is_layer(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | torch.nn.Embedding) or type(module).__name__ == "Conv1D"


def _next(row: Row, scores: torch.Tensor) -> Chosen:
    """Choose a token; its log-probability is that before the temperature."""
    logprobs = scores.log_softmax(-1)
    if row.temperature == 0:
        token = int(logprobs.argmax())
    else:
        token = int(torch.multinomial((scores / row.temperature).softmax(-1), 1, generator=row.generator))
    ended = "stop" if token in row.ends else "length" if len(row.chosen) + 1 >= row.limit else None
    return _chosen(logprobs, token, row.top, ended)


def _chosen(logprobs: torch.Tensor, token: int, top: int, finish: str | None = None) -> Chosen:
    values, tokens = logprobs.topk(top)
    best = dict(zip(tokens.tolist(), values.tolist(), strict=True))
    own = float(logprobs[token])
    return Chosen(token, own, int((logprobs > own).sum()) + 1, best, finish)
