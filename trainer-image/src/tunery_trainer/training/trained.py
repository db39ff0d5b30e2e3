"""A trained adapter: what was measured on the way, and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from tunery_api.findings import CheckStatus, FindingStatus
from tunery_trainer.adapter.save import save_published
from tunery_trainer.data.template import DEFAULT_TEMPLATE
from tunery_trainer.diagnosis.answers import Answer
from tunery_trainer.diagnosis.history import Evaluation
from tunery_trainer.diagnosis.paired import Difference
from tunery_trainer.plan.training_plan import TrainingPlan
from tunery_trainer.resuming.memo import Memo
from tunery_trainer.settings.types import RunSettings


@dataclass(frozen=True)
class Trained:
    """A trained model and what was measured on the way."""

    model: PeftModel
    settings: RunSettings
    """As they ended up: with smaller passes than planned where memory ran out."""
    before: dict[str, float]
    """`loss` on the held-out rows before training, and a preference task's `reward_accuracy` and `reward_margin`."""
    after: dict[str, float]
    """The same of what is published; empty where it was not measured, as it is not finished."""
    loss: float
    """Training loss at the last logged step up to `step`."""
    change: Difference | None
    """How far the loss on the held-out rows is from before training; None where they are too few to tell."""
    evaluations: list[Evaluation]
    """Those while training and at its end, in order."""
    answers: list[Answer]
    """To held-out rows; empty where nobody asked for them."""
    history: list[dict[str, Any]]
    taken: int
    """Optimizer steps: fewer than planned where early stopping ended the run."""
    epochs: float
    """How often they passed the data."""
    step: int
    """The step whose weights are published: the best ones, unless the last were asked for."""
    rank: int | None
    target_modules: list[str]
    trainable_parameters: int
    device: str
    peak_bytes: int
    """The most memory that this process has held."""
    loader: str
    """The auto class that loads the base model."""
    memo: Memo | None = None
    """What the run knows of how it began; None where it was not resumed."""
    findings: list[FindingStatus] | None = None
    """What the run found out about itself; None where nobody has judged it."""
    checks: list[CheckStatus] | None = None
    """The checklist, of one that is not finished as far as it is known; None where nobody has looked."""

    @property
    def base_eval_loss(self) -> float:
        """The loss on the held-out rows before training."""
        return self.before["loss"]

    @property
    def eval_loss(self) -> float | None:
        """The loss on the held-out rows of what is published; None where it was not measured."""
        return self.after.get("loss")

    def save(self, plan: TrainingPlan, folder: Path) -> None:
        """Write the adapter as plain PEFT loads it, and the tokenizer where rows went through its chat template."""
        save_published(self.model, folder, plan.basis.spec.model.effective_served_name())
        tokens = plan.data.tokens
        save_tokenizer(plan.basis.tokenizer, tokens.template if tokens else "none", folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, template: str, folder: Path) -> None:
    """Write the tokenizer where rows went through a chat template, its own or ours; `none`: they did not."""
    if template == "none":
        return
    if tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_TEMPLATE
    tokenizer.save_pretrained(str(folder))
