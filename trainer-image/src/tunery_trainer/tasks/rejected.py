"""An adapter that is not as much better as was asked for: published beside the output, and marked as rejected.

It was paid for. It is a valid adapter, with a manifest like any other, so that it can be looked at, and named by its
URI; what names its LoRAJob never gets it, as that has failed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from tunery_api.fields import is_same_uri
from tunery_api.findings import Severity
from tunery_api.manifest import Lineage
from tunery_api.names import sibling_uri
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, recreate
from tunery_api.runspec import Purpose, RunSpec
from tunery_common.errors import TuneryError
from tunery_common.storage import StorePath
from tunery_common.storage.published_folder import read_manifest
from tunery_common.storage.publisher import Target
from tunery_trainer.diagnosis.advice import Advice
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.reporting.improvement import shortfall
from tunery_trainer.reporting.result import result_of
from tunery_trainer.tasks.data_report import forget_report
from tunery_trainer.tasks.patience import publish_patiently

_WORD: Final = "rejected"


def with_verdict(lineage: Lineage, asked: float) -> Lineage:
    """Return the lineage, with why the adapter is not better than the base by the share `asked`, where it is not.

    What was not measured is better by nothing that anybody knows: rejected only where a share above 0 was asked for.
    Raises TuneryError(NotImproved) where it changes nothing at all: nobody has a use for that.
    """
    before, after = lineage.metrics["baseEvalLoss"], lineage.metrics.get("evalLoss")
    if after is None:
        text = f"its loss on the held-out rows was not measured, and spec.evaluation.minImprovement asks for {asked:g}"
        return lineage.model_copy(update={"rejected": text}) if asked > 0 else lineage
    if after == before:
        text = f"the adapter changes nothing: the evaluation loss is {after:.4f} with it and without it"
        raise TuneryError(FailureReason.NOT_IMPROVED, text, *_remedies(lineage))
    rejected = shortfall(before, after, asked, error=lineage.metrics.get("improvementError"))
    return lineage.model_copy(update={"rejected": rejected})


def rejected_uri(run: RunSpec) -> str:
    """Return where a rejected adapter of the run goes: beside the output, or below it where that is a whole bucket."""
    return sibling_uri(run.output_uri, _WORD)


def reject(work: Workspace, folder: Path, lineage: Lineage) -> TuneryError:
    """Publish what is in `folder`, and return NotImproved with its URI as a fact, or with why it isn't published.

    `lineage.rejected` says why it was rejected. An earlier rejected adapter gives way, whosever it is; nothing else
    that lies there does.
    """
    uri = rejected_uri(work.run)
    try:
        published = publish_patiently(folder, _target(work, uri, lineage), lineage)
    except TuneryError as error:
        text = f"{lineage.rejected}; what was trained could not be published at {uri}: {error.message}"
        return TuneryError(FailureReason.NOT_IMPROVED, text, *_remedies(lineage))
    failure = TuneryError(FailureReason.NOT_IMPROVED, str(lineage.rejected), *_remedies(lineage))
    failure.facts["rejectedAdapter"] = uri
    result = result_of(published)
    failure.reached = result.model_copy(update={"adapter": None, "rejected_adapter": result.adapter})
    forget_report(work)
    return failure


def _remedies(lineage: Lineage) -> tuple[Remedy, ...]:
    """Return what the most severe problem of the run suggests; none: the usual remedies."""
    problems = (each for each in lineage.findings or () if each.severity == Severity.PROBLEM and each.field)
    found = next(problems, None)
    if found is None or found.field is None:
        return ()
    return (recreate(f"Try {Advice(found.field, found.suggest)}, as the finding {found.type} suggests", found.field),)


def _target(work: Workspace, uri: str, lineage: Lineage) -> Target:
    if any(is_same_uri(adapter.uri, uri) for adapter in work.run.adapters):
        message = "that is the adapter of spec.continueFrom, which stays"
        raise TuneryError(FailureReason.OUTPUT_EXISTS, message)
    place = work.open(Purpose.OUTPUT, uri, "spec.output.uri")
    beyond = lineage.stopped.after_step if lineage.stopped else math.inf
    return Target(place, work.run.identity, _gives_way(place), beyond)


def _gives_way(place: StorePath) -> bool:
    try:
        return read_manifest(place).manifest.lineage.rejected is not None
    except TuneryError as error:
        if error.reason in (FailureReason.ADAPTER_MISSING, FailureReason.ADAPTER_CORRUPT):
            return False
        raise
