"""What training minimises: SFT, DPO, ORPO and KTO, each a mean that no split into forward passes changes.

The arithmetic of each is held by a test to TRL's trainer of the same name: equal loss and gradients on equal rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch
from torch.nn.functional import logsigmoid

from tunery_api.methods import PreferenceLoss, TrainingTask
from tunery_trainer.data.mask import IGNORED
from tunery_trainer.losses.answers import AnswerCollator, PairCollator, Rows
from tunery_trainer.losses.lm_head import log_probabilities
from tunery_trainer.model.collator import Collator
from tunery_trainer.settings.types import PreferenceSettings, RunSettings
from tunery_trainer.team.team import ALONE, Team

Batch = Mapping[str, Any]
Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]

IDLE: Final = "idle"
"""In a batch that is there only so that all processes take as many: nothing of it counts."""
_OWN_COLUMNS: Final = ("row", "reference", "desirable", "mismatched", IDLE)
"""What of a batch the model is not shown."""


def is_idle(batch: Batch) -> bool:
    """Tell whether nothing of a batch counts."""
    return IDLE in batch


@dataclass(frozen=True)
class Rewards:
    """What the model has come to prefer, in one batch; without gradients.

    A reward is beta times how much likelier an answer is than it was for the reference; ORPO, which has none, takes
    beta times the mean log-probability of the answer's tokens.
    """

    good: torch.Tensor
    """Of the chosen or desirable answers, (good,)."""
    bad: torch.Tensor
    """Of the rejected or undesirable answers, (bad,)."""
    right: torch.Tensor
    """Bool: whether the chosen answer has the higher reward, (pairs,); KTO: whether an answer is on its side of the
    reference point, (rows,)."""


@dataclass(frozen=True)
class Outcome:
    """What a batch adds to the loss."""

    losses: torch.Tensor
    """Of each row, (rows, parts), float32 with gradients; each part is a mean of its own, over what `counts` counts."""
    rewards: Rewards | None = None

    @property
    def sums(self) -> torch.Tensor:
        """The sums over the rows, (parts,)."""
        return self.losses.sum(0)


class Objective(Protocol):
    """One task."""

    def collator(self, collate: Collator, source: Rows) -> Collate:
        """Return what makes a batch of rows of `source`."""
        ...

    def counts(self, batch: Batch) -> torch.Tensor:
        """Return what of each row each part is the mean over, (rows, parts)."""
        ...

    def totals(self, model: torch.nn.Module, batches: Iterable[Batch]) -> torch.Tensor | None:
        """Return what is to be added up over all batches before any of them has a loss; None where nothing is."""
        ...

    def at(self, totals: torch.Tensor | None) -> Objective:
        """Return the objective for an optimizer step, or an evaluation, of these `totals`."""
        ...

    def outcome(self, model: torch.nn.Module, batch: Batch) -> Outcome:
        """Return what `batch` adds to the loss under a `model` with the head."""
        ...


def objective_of(resolved: RunSettings) -> Objective:
    """Return the objective of a run."""
    if resolved.preference is None:
        return Sft()
    if resolved.task is TrainingTask.DPO:
        return Dpo(resolved.preference)
    if resolved.task is TrainingTask.ORPO:
        return Orpo(resolved.preference)
    return Kto(resolved.preference, resolved.training.max_length)


@dataclass(frozen=True)
class Sft:
    """The mean negative log-likelihood, in nats, of the tokens with a label."""

    def collator(self, collate: Collator, source: Rows) -> Collate:
        """Return `collate`."""
        return collate

    def counts(self, batch: Batch) -> torch.Tensor:
        """Return the number of labels."""
        return _labels(batch).sum(1)[:, None]

    def totals(self, model: torch.nn.Module, batches: Iterable[Batch]) -> None:
        """Return None."""

    def at(self, totals: torch.Tensor | None) -> Sft:
        """Return itself."""
        return self

    def outcome(self, model: torch.nn.Module, batch: Batch) -> Outcome:
        """Return the loss of the batch."""
        return Outcome(-log_probabilities(model, batch).sum(1)[:, None])


@dataclass(frozen=True)
class _Pairs:
    """What DPO and ORPO have in common: rows of a chosen and a rejected answer."""

    settings: PreferenceSettings

    def collator(self, collate: Collator, source: Rows) -> Collate:
        """Return a collator of both answers of each row."""
        return PairCollator(collate)

    def _rewards(self, values: torch.Tensor) -> Rewards:
        good, bad = (self.settings.beta * values.detach()).chunk(2)
        return Rewards(good, bad, good > bad)


@dataclass(frozen=True)
class Dpo(_Pairs):
    """Direct preference optimisation (Rafailov et al. 2023), with the losses of SLiC and IPO (Azar et al. 2023)."""

    def counts(self, batch: Batch) -> torch.Tensor:
        """Return 1 for each pair."""
        return _ones(batch, len(batch["labels"]) // 2)

    def totals(self, model: torch.nn.Module, batches: Iterable[Batch]) -> None:
        """Return None."""

    def at(self, totals: torch.Tensor | None) -> Dpo:
        """Return itself."""
        return self

    def scores(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the log-probabilities of the chosen answers, then of the rejected ones, (2 * pairs,), float32."""
        return _scores(model, batch)

    def outcome(self, model: torch.nn.Module, batch: Batch) -> Outcome:
        """Return the loss of the pairs."""
        ratios = self.scores(model, batch) - batch["reference"]
        losses = dpo_losses(ratios, _labels(batch).sum(1), self.settings)
        return Outcome(losses[:, None], self._rewards(ratios))


def dpo_losses(ratios: torch.Tensor, lengths: torch.Tensor, settings: PreferenceSettings) -> torch.Tensor:
    """Return the loss of each pair, (pairs,).

    `ratios` are the log-ratios of the chosen answers to the reference, then those of the rejected ones, (2 * pairs,),
    `lengths` the tokens of the answers: IPO's authors average over them.
    """
    if settings.loss_type is PreferenceLoss.IPO:
        good, bad = (ratios / lengths.clamp(min=1)).chunk(2)
        return (good - bad - 1 / (2 * settings.beta)) ** 2
    good, bad = ratios.chunk(2)
    margins = settings.beta * (good - bad)
    return torch.relu(1 - margins) if settings.loss_type is PreferenceLoss.HINGE else -logsigmoid(margins)


@dataclass(frozen=True)
class Orpo(_Pairs):
    """Odds ratio preference optimisation (Hong et al. 2024): the chosen answer's likelihood, and its odds.

    The likelihood is that of the prompt, too, as in TRL's.
    """

    def counts(self, batch: Batch) -> torch.Tensor:
        """Return of each pair the tokens of the chosen row that have one before them, and 1."""
        pairs = len(batch["labels"]) // 2
        tokens = batch["attention_mask"][:pairs, 1:].sum(1)
        return torch.stack([tokens, torch.ones_like(tokens)], 1)

    def totals(self, model: torch.nn.Module, batches: Iterable[Batch]) -> None:
        """Return None."""

    def at(self, totals: torch.Tensor | None) -> Orpo:
        """Return itself."""
        return self

    def outcome(self, model: torch.nn.Module, batch: Batch) -> Outcome:
        """Return the losses of the chosen tokens and of the pairs' odds."""
        pairs, answers = len(batch["labels"]) // 2, _labels(batch)
        labels = batch["labels"].clone()
        labels[:pairs] = batch["input_ids"][:pairs].masked_fill(batch["attention_mask"][:pairs] == 0, IGNORED)
        tokens = log_probabilities(model, _shown(batch) | {"labels": labels})[:, -answers.shape[1] :]
        means = (tokens * answers).sum(1) / answers.sum(1).clamp(min=1)
        odds = -self.settings.beta * logsigmoid(log_odds_ratio(means))
        return Outcome(torch.stack([-tokens[:pairs].sum(1), odds], 1), self._rewards(means))


def log_odds_ratio(means: torch.Tensor) -> torch.Tensor:
    """Return the log of the odds of each chosen answer over those of the rejected one, (pairs,).

    `means` are the mean log-probabilities of the answers' tokens, chosen first, (2 * pairs,).
    """
    good, bad = (means - _log_of_rest(means)).chunk(2)
    return good - bad


def _log_of_rest(logs: torch.Tensor) -> torch.Tensor:
    """Return log(1 - exp(logs)), each half of it by the form that keeps its digits (Maechler 2012)."""
    # Where 1 - exp(logs) is 0 in float32, its gradient would be a NaN.
    logs = logs.clamp(max=-1e-7)
    return torch.where(logs < -0.6931472, torch.log1p(-torch.exp(logs)), torch.log(-torch.expm1(logs)))


@dataclass(frozen=True)
class Kto:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024): single answers, each of them desirable or not.

    The reference point is how far the model is from the reference on answers to other prompts: the mean over all rows
    of an optimizer step, so that a step is the same whatever fits into a forward pass.
    """

    settings: PreferenceSettings
    max_length: int
    """Tokens; a prompt with another row's answer is cut to them."""
    point: torch.Tensor | None = None
    """The reference point, a scalar of at least 0; None: not measured yet."""

    def collator(self, collate: Collator, source: Rows) -> Collate:
        """Return a collator of the rows and of their prompts with other answers."""
        return AnswerCollator(collate, source, self.max_length)

    def counts(self, batch: Batch) -> torch.Tensor:
        """Return 1 for each row."""
        return _ones(batch, len(batch["labels"]))

    @torch.no_grad()
    def totals(self, model: torch.nn.Module, batches: Iterable[Batch]) -> torch.Tensor:
        """Return the sum of how far the model is from the reference on the other answers, and their number, (2,)."""
        found = torch.zeros(2, device=next(model.parameters()).device)
        for batch in batches:
            far = _scores(model, batch["mismatched"]) - batch["reference"][len(batch["labels"]) :]
            if not is_idle(batch):
                found += torch.stack([far.sum(), torch.full_like(far.sum(), len(far))])
        return found

    def at(self, totals: torch.Tensor | None) -> Kto:
        """Return it at the reference point of these totals."""
        return self if totals is None else replace(self, point=(totals[0] / totals[1]).clamp(min=0))

    def scores(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the log-probabilities of the rows' own answers, then of the others, (2 * rows,), float32."""
        return torch.cat([_scores(model, batch), _scores(model, batch["mismatched"])])

    def outcome(self, model: torch.nn.Module, batch: Batch) -> Outcome:
        """Return the loss of the rows."""
        if self.point is None:
            raise ValueError("KTO needs its reference point")
        desirable = batch["desirable"]
        ratios = _scores(model, batch) - batch["reference"][: len(desirable)]
        losses = kto_losses(ratios, desirable, self.point, self.settings)
        rewards, point = self.settings.beta * ratios.detach(), self.settings.beta * self.point
        right = torch.where(desirable, rewards > point, rewards < point)
        return Outcome(losses[:, None], Rewards(rewards[desirable], rewards[~desirable], right))


def kto_losses(
    ratios: torch.Tensor, desirable: torch.Tensor, point: torch.Tensor, settings: PreferenceSettings
) -> torch.Tensor:
    """Return the weighted loss of each answer, (rows,), from its log-ratio to the reference."""
    above = settings.beta * (ratios - point)
    good = settings.desirable_weight * (1 - torch.sigmoid(above))
    bad = settings.undesirable_weight * (1 - torch.sigmoid(-above))
    return torch.where(desirable, good, bad)


Compared = Dpo | Kto
"""The objectives that compare with what the model said before training: what `scores` were then is a row's
`reference`."""


class Tally:
    """Adds up what the model prefers, batch by batch, on their device."""

    def __init__(self) -> None:
        self._rewards: list[Rewards] = []

    def add(self, outcome: Outcome) -> None:
        """Take the outcome of one batch."""
        if outcome.rewards:
            self._rewards.append(outcome.rewards)

    def rewards(self, team: Team = ALONE) -> dict[str, float]:
        """Return `reward_accuracy`, the share that is right, and `reward_margin`, how far the mean rewards are apart.

        Of what all processes of `team` have counted. A margin is left out where all answers are of one kind; both where
        the task has no rewards.
        """
        mine = [
            torch.cat([getattr(r, n) for r in self._rewards]).cpu() for n in ("good", "bad", "right") if self._rewards
        ]
        parts = [part for part in team.gather(mine) if part]
        if not parts:
            return {}
        good, bad, right = map(torch.cat, zip(*parts, strict=True))
        found = {"reward_accuracy": right.float().mean().item()}
        if len(good) and len(bad):
            found["reward_margin"] = (good.double().mean() - bad.double().mean()).item()
        return found


def _labels(batch: Batch) -> torch.Tensor:
    """Return which tokens count, (rows, length - 1): the first one of a row has none before it."""
    labels: torch.Tensor = batch["labels"]
    return labels[:, 1:] != IGNORED


def _scores(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return log_probabilities(model, _shown(batch)).sum(1)


def _shown(batch: Batch) -> dict[str, Any]:
    return {name: part for name, part in batch.items() if name not in _OWN_COLUMNS}


def _ones(batch: Batch, rows: int) -> torch.Tensor:
    return torch.ones((rows, 1), dtype=torch.long, device=batch["labels"].device)
