"""What a checkpoint remembers so that it can be published as it is, by whoever has no GPU: publish.json."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, JsonValue

from tunery_api.manifest import Lineage

DRAFT_FILE: Final = "publish.json"


class Draft(BaseModel):
    """How an adapter that is not finished would be published."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    recipe: dict[str, JsonValue]
    """PEFT's configuration of the adapter."""
    lineage: Lineage
    """As of the checkpoint: `step` says whose weights are the best, `metrics` holds no loss that was not measured."""

    def write(self, checkpoint: Path) -> None:
        """Write it into the folder of a checkpoint."""
        (checkpoint / DRAFT_FILE).write_text(self.model_dump_json(by_alias=True, exclude_none=True), "utf-8")


def read_draft(checkpoint: Path) -> Draft:
    """Return the draft in the folder of a checkpoint."""
    return Draft.model_validate_json((checkpoint / DRAFT_FILE).read_bytes())
