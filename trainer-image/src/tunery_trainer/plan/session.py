"""What training works with; made by the story of a run, read by the loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.runspec import RunSpec
from tunery_trainer.inputs.adapter import PreviousAdapter
from tunery_trainer.inputs.fetch import FetchedModel
from tunery_trainer.resuming.memo import Origin
from tunery_trainer.resuming.origin import origin_of
from tunery_trainer.settings.types import Resolved

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunery_trainer.data.prepare import PreparedData
    from tunery_trainer.plan.training_plan import Plan


@dataclass(frozen=True)
class Session:
    """What a run works with once everything is on the disk and every setting is decided."""

    run: RunSpec
    spec: LoRAJobSpec
    model: FetchedModel
    previous: PreviousAdapter | None
    """The adapter that is trained on; None: a new one is trained."""
    tokenizer: PreTrainedTokenizerBase
    data: PreparedData
    plan: Plan
    on_gpu: bool

    @property
    def resolved(self) -> Resolved:
        """Every setting of the run."""
        return self.plan.resolved

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.plan.steps

    @cached_property
    def origin(self) -> Origin:
        """What is trained, but for the digest of the base, which may still be read."""
        return origin_of(self.run, self.model, self.data.report, self.plan)

    def whole_origin(self) -> Origin:
        """Return what is trained; waits for the digest of a base in a claim."""
        return self.origin.with_digest(self.model.digest)

    def with_resolved(self, resolved: Resolved) -> Session:
        """Return the session with other settings of the same steps."""
        return replace(self, plan=replace(self.plan, resolved=resolved))
