"""What a plan is made from beside the data: manifest, base model, device, and what training starts from."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.runspec import RunIdentity
from tunery_common.inputs.location import FetchedModel
from tunery_trainer.adapter.continue_from import check_fits, settings_from
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.inputs.adapter import StartingAdapter
from tunery_trainer.model.load import load_tokenizer, meta_model
from tunery_trainer.model.outline import Outline, outline
from tunery_trainer.resuming.taken_settings import NOTHING, Taken
from tunery_trainer.settings.auto_method import MethodChoice, method_choices
from tunery_trainer.settings.loop import Chosen
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, ModelFacts, RunSettings

_NUMBER: Final = re.compile(r"(^|[.\\])\d|[][*+?|(){}^$]")
"""What names single layers: a number in a path, or a pattern."""


@dataclass(frozen=True)
class Basis:
    """What a plan is made from, beside the data; alike in preflight and in training."""

    run: RunIdentity
    spec: LoRAJobSpec
    base: FetchedModel
    """The base model; without weights is enough."""
    device: DeviceFacts
    start_from: StartingAdapter | None = None
    """The adapter that is trained on; None: a new one is trained."""
    taken: Taken = NOTHING
    """What `spec` has from the checkpoint of resumeFrom."""
    config_only: bool = False
    """Whether of the base no more than config.json is there: enough to count, not to train."""

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled for another process: what follows from it, a model too, is made anew there.

        The base's digest may still be read by a thread of this one, and only this one tells it.
        """
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return own | {"base": replace(self.base, files=None)}

    @cached_property
    def outline(self) -> Outline:
        """The model's structure, by a few of its layers; raises TuneryError(ModelUnsupported)."""
        return outline(self.base.folder)

    @property
    def facts(self) -> ModelFacts:
        """What config.json tells; raises TuneryError(ModelUnsupported)."""
        return self.outline.facts

    def outline_for(self, settings: RunSettings) -> Outline:
        """Return the structure to put the adapter of `settings` on: with every layer where it tells them apart."""
        adapter = settings.adapter
        names = (*(adapter.target_modules or ()), *adapter.rank_pattern, *adapter.alpha_pattern)
        return outline(self.base.folder, whole=True) if any(map(_NUMBER.search, names)) else self.outline

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's; raises TuneryError(ModelUnsupported)."""
        return load_tokenizer(self.base.folder)

    def planned_for(self, spec: LoRAJobSpec, device: DeviceFacts) -> Basis:
        """Return what a plan of another job on the same model is made from, and its structure with it."""
        other = replace(self, spec=spec, device=device)
        other.__dict__["outline"] = self.outline
        return other

    def context(self, steps: int) -> MethodContext:
        """Return what a method may need to begin with, in a run of so many optimizer steps."""
        return MethodContext(None if self.config_only else self.tokenizer, steps)

    @property
    def on_gpu(self) -> bool:
        """Whether training runs on a GPU."""
        return self.device.kind is DeviceKind.CUDA

    def choices(self, rows: int | None) -> tuple[MethodChoice, ...]:
        """Return the methods that may be taken for a data set of so many rows, the best first."""
        return method_choices(self.spec, rows, self.device, self.facts.stored)

    def settings(self, choice: MethodChoice, chosen: Chosen | None) -> RunSettings:
        """Return every setting; without `chosen` as far as they do not depend on tokens.

        What the manifest leaves open is the starting adapter's, where there is one. Raises TuneryError(InvalidSpec).
        """
        resolved = self.taken.marked(resolve(self.spec, self.facts, self.device, choice, chosen))
        if self.start_from is None:
            return resolved
        served = None if self.start_from.unverified else self.spec.model.effective_served_name()
        return settings_from(resolved, meta_model(self.base.folder), self.start_from.folder, served)

    def check_start(self, settings: RunSettings) -> None:
        """Compare the tensors of a starting adapter that was made elsewhere with the base, whose weights need not be
        there.

        Raises TuneryError: BaseMismatch naming the tensor, AdapterCorrupt.
        """
        if self.start_from is not None and self.start_from.tensors is not None:
            check_fits(meta_model(self.base.folder), settings, self.context(1), self.start_from.tensors)
