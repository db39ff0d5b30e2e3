"""What a model says to held-out rows: the greedy answer to everything before the row's last answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tunery_trainer.data.mask import IGNORED
from tunery_trainer.losses.answers import Rows
from tunery_trainer.losses.evaluation import evaluating
from tunery_trainer.model.attention import with_cache
from tunery_trainer.process.device import out_of_memory

_AT_ONCE: Final = 8
"""Rows of a batch."""


@dataclass(frozen=True)
class Question:
    """A row, up to its last answer."""

    prompt: list[int]
    """Token ids, one at least."""
    expected: list[int]
    """Token ids of the last answer, the token that ends it included."""


def questions(rows: Rows, count: int) -> list[Question]:
    """Return at most `count` rows as questions, spread evenly over `rows`; a row without a prompt is none.

    The last answer is the last run of tokens with a label.
    """
    found = []
    for at in _spread(len(rows), count):
        row = rows[at]
        ids, labels = list(row["input_ids"]), list(row["labels"])
        end = max((place for place, label in enumerate(labels) if label != IGNORED), default=-1) + 1
        start = next((place + 1 for place in range(end - 1, -1, -1) if labels[place] == IGNORED), 0)
        if start:
            found.append(Question(ids[:start], ids[start:end]))
    return found


def _spread(rows: int, count: int) -> list[int]:
    return sorted({place * rows // count for place in range(count)}) if rows > count else list(range(rows))


@dataclass(frozen=True)
class Speaker:
    """How a model answers."""

    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    dtype: torch.dtype = torch.float32
    together: bool = False
    """Every pass is one of several processes: none ends before the others, whatever it has to say."""

    def text(self, ids: Sequence[int]) -> str:
        """Return tokens as text, without special ones and white space around."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def answers(self, model: Any, asked: Sequence[Question]) -> list[str]:
        """Return what `model`, a transformers model or a PeftModel, says to each, always taking the likeliest token.

        It stops where serving would: at what the model's generation configuration or the tokenizer calls an end. Fewer
        rows go at once where memory runs out; raises what torch raises where one does not fit.
        """
        said: dict[int, str] = {}
        order = sorted(range(len(asked)), key=lambda place: len(asked[place].prompt))
        batches = [order[at : at + _AT_ONCE] for at in range(0, len(order), _AT_ONCE)]
        with with_cache(model), evaluating(model, self.dtype):
            while batches:
                chosen = batches.pop(0)
                try:
                    texts = self._batch(model, [asked[place].prompt for place in chosen])
                except (RuntimeError, MemoryError) as error:
                    if len(chosen) == 1 or self.together or not out_of_memory(error):
                        raise
                    batches[:0] = [chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]]
                    continue
                said |= dict(zip(chosen, texts, strict=True))
        return [said[place] for place in range(len(asked))]

    def _batch(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
        device, longest = next(model.parameters()).device, max(map(len, prompts))
        pad = int(self.tokenizer.pad_token_id)
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        said = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=self._config(model), synced_gpus=self.together
        )
        return [self.text(row[longest:].tolist()) for row in said]

    def _config(self, model: Any) -> GenerationConfig:
        ends = getattr(model.generation_config, "eos_token_id", None)
        known = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=int(self.tokenizer.pad_token_id),
            eos_token_id=sorted(known) or None,
            use_cache=True,
        )
