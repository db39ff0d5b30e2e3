"""What the caller asks of the data layer, and what it gets told about the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from tunery_api.inputs import DatasetFormat, DatasetTemplate
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import PREFERENCE_TASKS, TrainingTask
from tunery_api.training import Loss


@dataclass(frozen=True)
class DataOptions:
    """Everything that decides what comes out of a data set, apart from the files and the tokenizer.

    At most one of `evaluation_root` (a file or folder of its own) and `evaluation_split` is set; with neither,
    `evaluation_fraction` of the rows (at least 1, at most 1,000) is held out; of 0 none.
    """

    task: TrainingTask = TrainingTask.SFT
    """Decides which formats there are, and what a row becomes."""
    path: str = ""
    """A file, a folder or a glob below the root; empty for the root itself."""
    format: DatasetFormat = DatasetFormat.AUTO
    template: DatasetTemplate = DatasetTemplate.CHAT
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """From our name of a field (`prompt`) to the name of the column that holds it (`question`)."""
    max_invalid_rows: int = 0
    max_length: int = 2048
    """Tokens; what a row has beyond them is cut off and reported."""
    packing: bool = True
    """Rows of preferences are never packed."""
    min_sequences: int = 0
    """Pack only if it leaves at least so many sequences to train on."""
    loss: Loss = Loss.COMPLETION
    seed: int = 42
    evaluation_root: Path | None = None
    evaluation_path: str = ""
    evaluation_split: str | None = None
    evaluation_fraction: float = 0.05
    sha256: str | None = None
    """Digest that the files of the data must have, as `content_digest` counts it; None: any."""
    evaluation_sha256: str | None = None
    """The same of an evaluation set of its own, or of the files of its split."""
    sweep: str | None = None
    """The sweep that reads the same data in each trial, for messages."""

    @classmethod
    def of(cls, spec: LoRAJobSpec, path: str, evaluation_root: Path | None, evaluation_path: str) -> DataOptions:
        """Return what a manifest asks for, unpacked; the settings that it leaves open are the defaults."""
        data, evaluation = spec.dataset, spec.dataset.evaluation
        fraction = evaluation.fraction if evaluation else None
        return cls(
            task=spec.task,
            path=path,
            format=data.format,
            template=data.template,
            split=data.split,
            columns=dict(data.columns or {}),
            max_invalid_rows=data.max_invalid_rows,
            max_length=spec.training.max_length,
            packing=False,
            loss=spec.training.loss,
            seed=spec.training.seed,
            evaluation_root=evaluation_root,
            evaluation_path=evaluation_path,
            evaluation_split=evaluation.split if evaluation else None,
            evaluation_fraction=cls.evaluation_fraction if fraction is None else fraction,
            sha256=data.sha256,
            evaluation_sha256=evaluation.sha256 if evaluation else None,
        )

    def __post_init__(self) -> None:
        """Refuse what no rule lets through."""
        if self.task in PREFERENCE_TASKS and (self.packing or self.loss is Loss.ALL):
            raise ValueError(f"{self.task} weighs whole answers, neither packed nor with their prompts")


@dataclass(frozen=True)
class TokenReport:
    """What a tokenizer says about the data set; lengths in tokens, before rows are cut to maxLength.

    Of a pair, `tokens` and turns are those of both answers, lengths those of the longer.
    """

    tokens: int
    """All tokens that remain after cutting, of training and evaluation rows."""
    loss_tokens: int
    """Those of them that count in the loss."""
    truncated_percent: float
    """Share of rows longer than maxLength, 0 to 100."""
    lost_tokens: int
    """Tokens that were cut off."""
    p50_length: int
    p90_length: int
    p99_length: int
    longest: int
    unlearnable_rows: int
    """Rows left out because cutting them to maxLength left no token of an answer."""
    examples: int
    """What the training rows became: more than the rows where some were split."""
    split_rows: int
    """Rows that became several examples, since the chat template rewrites earlier turns."""
    repeated_tokens: int
    """Of `tokens`, those that stand in more than one example of a row."""
    assistant_turns: int
    """Turns of the assistant (with PLAIN, completions); 0 where every token counts."""
    context_turns: int
    """Those of them that the rows mark as not to be learned."""
    trained_turns: int
    """Those of them of which at least one token counts."""
    lost_reasoning: int
    """Turns to learn whose reasoning the chat template leaves out."""
    template: str
    """`tokenizer`, `chatml` (the tokenizer has none) or `none` (plain text)."""
    sequences: int = 0
    """Sequences to train on, those held out for evaluation not included."""
    packed: bool = False
    """Whether a sequence holds several examples."""
    desirable: int | None = None
    """KTO: of `sequences`, those whose answer is wanted."""
    training_tokens: int = 0
    """Of `tokens` those to train on; of a pair, those of the chosen answer."""
    held_out_tokens: int = 0
    """Of `tokens` those held out; of a pair, those of the chosen answer."""
    held_out_rows: int = 0
    """Rows held out of those to train on; 0 where the evaluation set is one of its own."""

    @property
    def held_out_share(self) -> float | None:
        """Tokens held out for each token to train on; None where nobody counted."""
        return self.held_out_tokens / self.training_tokens if self.training_tokens else None


@dataclass(frozen=True)
class DatasetReport:
    """What was found in the files."""

    rows: int
    """Valid rows of the split, those held out for evaluation included."""
    evaluation_rows: int
    """Valid rows of an evaluation set of its own; 0 where a fraction is held out."""
    invalid_rows: int
    first_invalid: tuple[str, ...]
    """At most five, each with file, line, field and reason."""
    duplicates: int
    """Rows equal to an earlier one of the same set; they are kept."""
    overlap: int
    """Rows of an evaluation set of its own that are training rows too."""
    sha256: str
    """Of the one file's bytes as stored, or of the `sha256sum` listing of several."""
    format: DatasetFormat
    ignored_columns: tuple[str, ...]
    tokens: TokenReport | None = None
    evaluation_sha256: str | None = None
    """The same of an evaluation set of its own, or of the files of its split; None where a fraction is held out."""
    evaluation_duplicates: int = 0
    """Of `duplicates` those within an evaluation set of its own."""
