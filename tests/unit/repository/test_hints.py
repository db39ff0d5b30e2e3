"""A hint, followed to the letter, mends: where a field cannot change, it says that it takes a new job."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunery_api.reasons import FailureReason

from kit.projects import PROJECTS, ROOT

SOURCES = [path for project in PROJECTS for path in sorted(project.source.rglob("*.py"))]
FIXED = re.compile(r"spec\.(model|dataset|output|training|lora|evaluation|method|preset|quantization|adapters)\b")


def hints(path: Path) -> Iterator[str]:
    """Yield the hints that a file gives to TuneryError, what is filled in left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "TuneryError" and len(node.args) > 2:
            parts = [part.value for part in ast.walk(node.args[2]) if isinstance(part, ast.Constant)]
            yield "".join(part for part in parts if isinstance(part, str))


def test_a_hint_that_names_a_fixed_field_says_that_it_takes_a_new_job() -> None:
    found = [hint for path in SOURCES for hint in hints(path)]
    assert len(found) >= 4
    assert [hint for hint in found if FIXED.search(hint) and "new job" not in hint] == []


COMMAND = re.compile(r"\bkubectl (?:-n \S+ )?[a-z]+ (?:(?!kubectl)[^`|;])*")
CLUSTER_WIDE = re.compile(r"kubectl (get|delete) node\b|kubectl taint nodes\b")
NO_COMMAND: dict[str, str] = {
    "kubectl describe pod tells ": "the pod is named by the condition beside it",
    "kubectl takes ": "how kubectl reads a manifest",
}
"""Said of kubectl, and nothing to copy: why."""


def texts(path: Path) -> Iterator[str]:
    """Yield every text of a file but docstrings, with the code of what is filled in."""
    tree = ast.parse(path.read_text())
    whole = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    skipped |= {id(part) for node in whole for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (each.value if isinstance(each, ast.Constant) else ast.unparse(each) for each in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def test_a_command_says_in_which_namespace_it_is_meant() -> None:
    """Copied as it stands it would else act on what bears the same name in the reader's own.

    Where a text is used without a cluster, too, " -n NAMESPACE" is filled in as `where`.
    """
    commands = [found[0] for path in SOURCES for text in texts(path) for found in COMMAND.finditer(text)]
    assert {command.split()[1] for command in commands} >= {"delete", "patch", "create", "logs", "annotate", "describe"}
    assert [words for words in NO_COMMAND if not any(each.startswith(words) for each in commands)] == []
    unsaid = [each for each in commands if "-n " not in each and "{where}" not in each and not CLUSTER_WIDE.match(each)]
    assert [each for each in unsaid if not each.startswith(tuple(NO_COMMAND))] == []


ON_THE_NODE: dict[str, str] = {
    "e2e/hints.py": "InvalidSpec SecretNotFound ModelNotFound ModelGated ModelUnsupported DatasetNotFound "
    "DatasetInvalid StorageAccessDenied StorageNotFound StorageUnavailable OutputExists LossDiverged NotImproved "
    "AdapterMissing AdapterCorrupt CheckpointMissing NameConflict DeadlineExceeded",
    "e2e/states.py": "QuotaExceeded CreateRefused PodRefused Unschedulable MountFailed ImagePullFailed "
    "ContainerRefused DiskFull",
    "e2e/test_states.py": "NodeLost",
    "e2e/test_second_chances.py": "OutOfMemory",
    "e2e/test_batches.py": "InputInvalid",
}
"""Reasons whose hint is done on the real node, and then the object succeeds: the file that says how."""
NOT_ON_IT: dict[str, str] = {
    "The tests' node has no GPU, and nothing imitates what a broken one does": "GPUUnavailable GPUFault "
    "GPUOutOfMemory WontFit",
    "A server serves the rest on; its own tests follow them": "AdapterUnsupported RankTooHigh BaseMismatch "
    "TooManyAdapters EngineRefused ProbeFailed EngineFailed EngineUnsupported",
    "Followed against a real API server, with pods that are played": "RequestsFailed ServerUnavailable PlatformChanged",
    "Told by tests with played pods, and by none followed to the end": "ServerAccessDenied FieldContested "
    "BudgetExhausted RetriesExhausted",
    "It goes on by itself: there is nothing to do": "Killed PeerLost NodePressure ClusterUnavailable InternalError",
}
"""The others, and why."""


def test_it_is_known_of_each_reason_whether_its_hint_was_followed_on_the_node() -> None:
    told = [reason for table in (ON_THE_NODE, NOT_ON_IT) for reasons in table.values() for reason in reasons.split()]
    assert sorted(told) == sorted(reason.value for reason in FailureReason)


@pytest.mark.parametrize("file", ON_THE_NODE)
def test_the_file_speaks_of_the_reasons_that_it_is_named_for(file: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    assert [reason for reason in ON_THE_NODE[file].split() if f'"{reason}"' not in text] == []
