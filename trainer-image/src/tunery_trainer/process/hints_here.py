"""What hints say where there is no cluster: a manifest is edited and run again, and the environment has the keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tunery_api.names import CA_BUNDLE_ENV
from tunery_api.reasons import ADVICE, FailureReason

_R = FailureReason
_AGAIN: Final = "and run it again"

_USUAL: Final[Mapping[FailureReason, str]] = {
    _R.INVALID_SPEC: f"Correct the named field in the manifest, {_AGAIN}.",
    _R.SECRET_NOT_FOUND: f"Set the named variables in the environment, {_AGAIN}; a store that is not AWS's own needs "
    "AWS_ENDPOINT_URL, too.",
    _R.MODEL_NOT_FOUND: "Put the model there, or name another spec.model.uri or spec.model.revision in the manifest, "
    f"{_AGAIN}.",
    _R.MODEL_GATED: "Accept the model's terms on its hub page, set the HF_TOKEN of that account in the environment, "
    f"{_AGAIN}.",
    _R.MODEL_UNSUPPORTED: "Name a causal language model in safetensors format that needs no code of its own in the "
    f"manifest, {_AGAIN}.",
    _R.DATASET_NOT_FOUND: "Put the data there, or name another spec.dataset.uri or spec.dataset.split in the manifest, "
    f"{_AGAIN}.",
    _R.DATASET_INVALID: f"Mend the named lines of the data set, {_AGAIN}. Other columns than the usual are told by "
    "spec.dataset.columns, and more bad lines are allowed by spec.dataset.maxInvalidRows, in the manifest.",
    _R.STORAGE_ACCESS_DENIED: "Give this user the right to read and write the named place; for S3 or a hub, correct "
    f"the keys in the environment, {_AGAIN}.",
    _R.STORAGE_NOT_FOUND: "Create the named place, or correct it in the manifest; for S3, AWS_ENDPOINT_URL in the "
    "environment, too.",
    _R.STORAGE_UNAVAILABLE: f"Check that it is up and can be reached from this machine, {_AGAIN}.",
    _R.OUTPUT_EXISTS: "Remove what is there, or say another spec.output.uri or spec.output.overwrite: true in the "
    f"manifest, {_AGAIN}.",
    _R.WONT_FIT: "Lower training.batchSize or training.maxLength in the manifest, use QLoRA, or take a machine with "
    f"more memory, {_AGAIN}.",
    _R.GPU_UNAVAILABLE: "Have the GPU looked at, its driver and CUDA; or set resources.gpus to 0 in the manifest to "
    "train on the CPU.",
    _R.GPU_FAULT: "Run it again: it goes on from the newest checkpoint. If it fails again, have the GPU looked at.",
    _R.GPU_OUT_OF_MEMORY: "Lower training.maxLength in the manifest, use QLoRA, or take a GPU with more memory, "
    f"{_AGAIN}; training.batchSize is lowered by itself.",
    _R.OUT_OF_MEMORY: "End what else takes memory on this machine, lower training.maxLength or training.batchSize, or "
    f"use method: QLoRA, {_AGAIN}.",
    _R.KILLED: "Look for what ends processes on this machine, and run it again: it goes on from the newest checkpoint.",
    _R.PEER_LOST: "Look at what was printed of the process that is named, and run it again: it goes on from the newest "
    "checkpoint.",
    _R.DISK_FULL: f"Free some of the disk, or name a folder on another with --work-dir, {_AGAIN}.",
    _R.LOSS_DIVERGED: "Lower training.learningRate or raise training.warmup in the manifest, look at the data, "
    f"{_AGAIN}.",
    _R.NOT_IMPROVED: "Train longer or with a higher rank, or lower evaluation.minImprovement, in the manifest; look at "
    "the data.",
    _R.MOUNT_FAILED: f"Name a file with certificates in PEM in {CA_BUNDLE_ENV}, {_AGAIN}.",
    _R.CHECKPOINT_MISSING: "Name a place with a complete checkpoint in spec.resumeFrom, or leave it out to train from "
    f"the start, {_AGAIN}.",
    _R.INTERNAL_ERROR: "This is a defect of Tunery: please report it with what was printed.",
}
"""In place of the hint that a reason has where nothing better is known; of others it holds here, too."""

_WORDS: Final = (
    (r"apply the manifest under a new name", "run it again"),
    (r"name a Secret with HF_TOKEN in secretRef", "set HF_TOKEN in the environment"),
    (
        r"Name a Secret with (AWS_\w+) and (AWS_\w+) in the secretRef .*",
        rf"Set \1 and \2 in the environment, {_AGAIN}.",
    ),
    (r" \(spec\.scheduling\)", ""),
    (r"\bin a new (job|merge)\b", "in the manifest"),
    (r"\bneeds a new (job|merge)\b", "goes into the manifest"),
    (r"\bneed a new (job|merge)\b", "go into the manifest"),
    (r"\bnew (job|merge)", "new run"),
    (r"\bretry\b", "run it again"),
)


def usual_here(reason: FailureReason) -> str:
    """Return what to do about a reason where nothing better is known."""
    return _USUAL.get(reason, ADVICE[reason].hint)


def said_here(hint: str, reason: FailureReason) -> str:
    """Return a hint in the words of a machine without a cluster; what a message says may be a user's own words."""
    text = hint.replace(ADVICE[reason].hint, usual_here(reason))
    for cluster, here in _WORDS:
        text = re.sub(cluster, here, text)
    return text
