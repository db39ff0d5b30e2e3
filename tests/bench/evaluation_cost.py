"""What an evaluation costs more because it keeps what each row adds: beside one that only adds up, in turn."""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunery_trainer.diagnosis.paired import paired
from tunery_trainer.losses import evaluation
from tunery_trainer.losses.evaluation import Pass, evaluating, measure
from tunery_trainer.losses.lm_head import head
from tunery_trainer.losses.objectives import Sft

PAD: Final = 0
TOKENS: Final = 2048
"""Of a forward pass."""


def main() -> None:
    """Print one JSON line: seconds of CPU of both by rounds, and by how much the median of the pairs differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, rows = random_model(), random_rows(arguments.rows)
    with_rows, alone = partial(judged, model, rows), partial(summed, model, rows)
    if not math.isclose(with_rows(), alone(), rel_tol=1e-6):
        raise SystemExit("the two evaluations differ")
    taken: dict[str, list[float]] = {"by row": [], "summed": []}
    for number in range(arguments.rounds):
        pair = [("by row", with_rows), ("summed", alone)]
        for name, work in pair if number % 2 else reversed(pair):
            taken[name].append(cpu(work))
    shares = [100 * (one / other - 1) for one, other in zip(taken["by row"], taken["summed"], strict=True)]
    print(
        json.dumps(
            {
                "parameters": sum(each.numel() for each in model.parameters()),
                "rows": arguments.rows,
                "cpu_seconds": {name: round(statistics.median(values), 3) for name, values in taken.items()},
                "more_percent": {
                    "median": round(statistics.median(shares), 2),
                    "rounds": [round(each, 2) for each in shares],
                },
                "beside_the_passes_percent": round(100 * beside(model, rows) / statistics.median(taken["summed"]), 3),
            }
        )
    )


def random_model() -> LlamaForCausalLM:
    """Return a Llama of some 30 million random parameters."""
    torch.manual_seed(0)
    size = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16_000, tie_word_embeddings=True, **size)).eval()


def random_rows(count: int) -> list[dict[str, list[int]]]:
    """Return rows of 20 to 200 tokens, of which the second half counts."""
    draw = random.Random(3)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(1, 16_000) for _ in range(draw.randint(20, 200))]
        rows.append({"input_ids": ids, "labels": [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]})
    return rows


def judged(model: torch.nn.Module, rows: list[Any]) -> float:
    """Evaluate as a run does, and compare with the evaluation before."""
    found = measure(model, rows, Sft(), Pass(PAD, tokens=TOKENS))
    paired(found.rows, found.rows)
    return found.loss


def summed(model: torch.nn.Module, rows: list[Any]) -> float:
    """Evaluate in the same passes, and add up at once."""
    objective, how = Sft(), Pass(PAD, tokens=TOKENS)
    total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.long)
    with head(model), evaluating(model, how.dtype):
        collate = objective.collator(evaluation._collator(model, how), rows)
        passes = evaluation._Passes(model, rows, collate, how.tokens)
        for _, (more, outcome) in passes.each(
            lambda batch: ((batch["labels"][:, 1:] != -100).sum(), objective.outcome(model, batch).losses.sum())
        ):
            count += more
            total += outcome.double()
    return float(total / count)


def beside(model: torch.nn.Module, rows: list[Any]) -> float:
    """Return the seconds of CPU of all that keeping rows apart adds to the passes, alone: no pass is among them."""
    how, objective = Pass(PAD, tokens=TOKENS), Sft()
    passes = evaluation._Passes(model, rows, evaluation._collator(model, how), how.tokens)
    batches = list(passes.each(lambda batch: batch))
    kept = [torch.rand(len(chosen), 1) for chosen, _ in batches]

    def work() -> None:
        counts = [objective.counts(batch).cpu() for _, batch in batches]
        losses = [each.double() for each in kept]
        order = [row for chosen, _ in batches for row in chosen]
        found = evaluation._row_losses(order, torch.cat(losses).cpu(), torch.cat(counts).cpu().double())
        paired(found, found)

    work()
    return statistics.median(cpu(work) for _ in range(20))


def cpu(work: Callable[[], object]) -> float:
    """Return the seconds of CPU that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
