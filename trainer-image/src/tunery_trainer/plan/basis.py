"""What a plan is made from beside the data: manifest, base model, device, and what training starts from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.runspec import RunIdentity
from tunery_trainer.adapter.continue_from import settings_from
from tunery_trainer.inputs.adapter import StartingAdapter
from tunery_trainer.inputs.location import FetchedModel
from tunery_trainer.model.load import load_tokenizer, meta_model, model_facts
from tunery_trainer.resuming.taken_settings import NOTHING, Taken
from tunery_trainer.settings.auto_method import MethodChoice, method_choices
from tunery_trainer.settings.loop import Chosen
from tunery_trainer.settings.resolve import resolve
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, ModelFacts, RunSettings


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

    @cached_property
    def facts(self) -> ModelFacts:
        """What config.json tells; raises TrainerError(ModelUnsupported)."""
        return model_facts(self.base.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's; raises TrainerError(ModelUnsupported)."""
        return load_tokenizer(self.base.folder)

    @property
    def on_gpu(self) -> bool:
        """Whether training runs on a GPU."""
        return self.device.kind is DeviceKind.CUDA

    def choices(self, rows: int) -> tuple[MethodChoice, ...]:
        """Return the methods that may be taken for a data set of so many rows, the best first."""
        return method_choices(self.spec, rows, self.device, self.facts.stored)

    def settings(self, choice: MethodChoice, chosen: Chosen | None) -> RunSettings:
        """Return every setting; without `chosen` as far as they do not depend on tokens.

        What the manifest leaves open is the starting adapter's, where there is one. Raises TrainerError(InvalidSpec).
        """
        resolved = self.taken.marked(resolve(self.spec, self.facts, self.device, choice, chosen))
        if self.start_from is None:
            return resolved
        model, served = meta_model(self.base.folder), self.spec.model.effective_served_name()
        return settings_from(resolved, model, self.start_from.folder, served)
