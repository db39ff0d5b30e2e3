"""The status of a BatchInference: how far its lines are, what answered them, and where the answers lie."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from tunery_api.fields import OpenModel, Text
from tunery_api.status import CommonStatus, ProgressStatus

MODELS_SHOWN: Final = 64


class AnsweredBy(OpenModel):
    """What answered lines of a batch."""

    name: Annotated[str, Field(max_length=253)] = Field(description="Name of the adapter, or of the base model.")
    manifest_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Digest of the adapter's manifest; none for the base model."
    )
    lines: int = Field(ge=0, description="Lines that it answered.")


class OutputStatus(OpenModel):
    """Published answers; set only after their manifest was read back and every digest matched."""

    uri: Text = Field(description="Where they lie.")
    manifest_sha256: Annotated[str, Field(max_length=64)] = Field(description="Digest of manifest.json.")
    size_bytes: int = Field(ge=0, description="Size of all files.")


class BatchInferenceStatus(CommonStatus):
    """The status of a BatchInference."""

    output: OutputStatus | None = Field(None, description="The published answers.")
    progress: ProgressStatus | None = Field(None, description="How far it is; steps are lines.")
    lines: int | None = Field(None, ge=0, description="Lines of the input.")
    answered: int | None = Field(None, ge=0, description="Lines that are answered.")
    errors: int | None = Field(None, ge=0, description="Lines that ended in errors.jsonl.")
    prompt_tokens: int | None = Field(None, ge=0, description="Tokens of the prompts, by the answers' usage.")
    completion_tokens: int | None = Field(None, ge=0, description="Tokens of the answers, by their usage.")
    answered_by: list[AnsweredBy] | None = Field(
        None, max_length=MODELS_SHOWN, description="What answered, by version, most lines first."
    )
