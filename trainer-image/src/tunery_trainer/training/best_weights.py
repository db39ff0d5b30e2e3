"""The adapter at its lowest evaluation loss: that one is published, not the last."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainerCallback

from tunery_trainer.adapter.methods.base import Hooks
from tunery_trainer.team.team import ALONE, Team
from tunery_trainer.training.weights import put_state, trained_state

BEST_FILE: Final = "best.pt"


def read_best(checkpoint: Path) -> dict[str, Any] | None:
    """Return what a checkpoint kept as the best: `loss`, `step`, `state` and `hooks`; None where it kept nothing."""
    path = checkpoint / BEST_FILE
    kept: dict[str, Any] | None = None
    if path.exists():
        kept = torch.load(path, weights_only=True, map_location="cpu")
    return kept


class BestAdapter(TrainerCallback):  # type: ignore[misc]  # transformers is not typed for us
    """Keeps the best weights in host memory and in every checkpoint, so that a resume knows them too.

    Add it before the callback that hands checkpoints on.
    """

    def __init__(self, model: torch.nn.Module, hooks: Hooks | None, team: Team = ALONE) -> None:
        self._team = team
        self._model = model
        self._hooks = hooks
        self._state: dict[str, torch.Tensor] = {}
        self._hooks_state: dict[str, Any] = {}
        self.loss = math.inf
        """Its loss on the held-out rows; infinite before the first evaluation."""
        self.since = 0
        """The step up to which nobody kept any weights, so that what was measured there cannot be put back."""
        self.step = 0
        """The optimizer step after which it was that."""

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Keep the weights if no earlier evaluation was better."""
        loss = (metrics or {}).get("eval_loss", math.inf)
        if loss < self.loss:
            self.loss, self.step = loss, state.global_step
            self._state = trained_state(self._model)
            self._hooks_state = copy.deepcopy(self._hooks.state()) if self._hooks else {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the best weights into the checkpoint, which the leader of a team writes."""
        if self._state and self._team.leader:
            kept = {"loss": self.loss, "step": self.step, "state": self._state, "hooks": self._hooks_state}
            torch.save(kept, Path(args.output_dir) / f"checkpoint-{state.global_step}" / BEST_FILE)

    def load(self, checkpoint: Path, step: int) -> None:
        """Take back what was best when `checkpoint` of that step was written, if its run kept it."""
        kept = read_best(checkpoint)
        if kept is not None:
            self.loss, self.step = kept["loss"], kept["step"]
            self._state, self._hooks_state = kept["state"], kept["hooks"]
        else:
            self.since = step

    def put_back(self) -> None:
        """Give the model the best weights; only after an evaluation."""
        put_state(self._model, self._state)
        if self._hooks:
            self._hooks.load_state(copy.deepcopy(self._hooks_state))
