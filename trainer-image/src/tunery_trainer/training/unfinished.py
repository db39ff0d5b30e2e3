"""An adapter that is not finished: what a checkpoint keeps of it, and its files once it is published all the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from tunery_api.manifest import Lineage
from tunery_api.methods import Method
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.methods import METHODS
from tunery_trainer.adapter.rebuild import first_delta, rebuilt, recipe_of
from tunery_trainer.adapter.save import published_rank, save_published
from tunery_trainer.model.load import load_tokenizer, meta_model
from tunery_trainer.resuming.draft import Draft
from tunery_trainer.training.best_weights import read_best
from tunery_trainer.training.trained import Trained, save_tokenizer
from tunery_trainer.training.weights import WEIGHTS_FILE

_FIRST_FILE: Final = "first_delta.safetensors"


def keep_draft(checkpoint: Path, trained: Trained, lineage: Lineage) -> None:
    """Write into a checkpoint what publishing it takes beside the trained weights; of the base no weight is read."""
    Draft(recipe=recipe_of(trained.model), lineage=lineage).write(checkpoint)
    first = first_delta(trained.model)
    if first:
        save_file(first, checkpoint / _FIRST_FILE)


def measured_at(history: list[dict[str, Any]], step: int) -> dict[str, float]:
    """Return what was measured on the held-out rows after a step, by the names of `Trained.after`; empty: nothing."""
    found: dict[str, Any] = next(
        (entry for entry in reversed(history) if entry["step"] == step and "eval_loss" in entry), {}
    )
    return {name.removeprefix("eval_"): value for name, value in found.items() if name.startswith("eval_")}


def save_unfinished(checkpoint: Path, draft: Draft, base: Path, folder: Path) -> int | None:
    """Write into `folder` the adapter that `draft` says is the best of a checkpoint, and return its rank, if any.

    As training would have written it: the same bytes. `base` is the base model's folder, which needs no weights.
    Raises TuneryError: ModelUnsupported, AdapterCorrupt; LossDiverged where the weights hold what is no number.
    """
    lineage = draft.lineage
    tensors, hooks_state = _weights(checkpoint, lineage)
    _check_finite(tensors, lineage)
    if (checkpoint / _FIRST_FILE).exists():
        tensors |= load_file(checkpoint / _FIRST_FILE)
    model = rebuilt(meta_model(base), draft.recipe, tensors)
    hooks = METHODS[Method(lineage.method or "")].hooks
    if hooks and hooks_state:
        hooks(model).load_state(dict(hooks_state))
    save_published(model, folder, lineage.served_name or "")
    template = lineage.found.template if lineage.found else None
    save_tokenizer(load_tokenizer(base), template or "none", folder)
    return published_rank(model)


def _check_finite(tensors: Mapping[str, torch.Tensor], lineage: Lineage) -> None:
    """Raise TuneryError where the weights are of a run that had diverged: nobody could use them, or train them on."""
    bad = next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)
    if bad is not None:
        message = f"the weights of step {lineage.step} hold NaN or infinity ({bad}): the run had diverged by then"
        raise TuneryError(FailureReason.LOSS_DIVERGED, message)


def _weights(checkpoint: Path, lineage: Lineage) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Return the trained parameters by full name, and the state of the method's hooks: the best, else the newest."""
    best = read_best(checkpoint) if lineage.step != lineage.steps else None
    if best is not None:
        return dict(best["state"]), best["hooks"]
    hooks = checkpoint / "hooks.pt"
    state = torch.load(hooks, weights_only=True, map_location="cpu") if hooks.exists() else {}
    return load_file(checkpoint / WEIGHTS_FILE), state
