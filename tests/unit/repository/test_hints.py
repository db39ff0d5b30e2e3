"""A remedy, followed to the letter, works: what changes in place may change, and a command names its namespace."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunery_api.reasons import FailureReason

from kit.projects import PROJECTS, ROOT

SOURCES = [path for project in PROJECTS for path in sorted(project.source.rglob("*.py"))]
MUTABLE = {
    *("scheduling", "retries", "activeDeadlineSeconds", "maxTrials", "budget"),
    *("resources", "engine", "adapters", "aliases", "access", "rollout"),
}
"""Fields that may change in place: of jobs, of sweeps, and of servers."""
CONSEQUENCE = re.compile(r"\bspec\.(?!suspend)\w|\b(and retry|new job|new sweep|run it again)\b")
"""`render_hint` says this, by the kind of the object."""


def remedies(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield what a file calls `retry`, `edit` and `recreate` with: the function, and its texts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("retry", "edit", "recreate"):
            parts = [part.value for each in node.args for part in ast.walk(each) if isinstance(part, ast.Constant)]
            yield ast.unparse(node.func), [part for part in parts if isinstance(part, str)]


def test_what_is_said_to_change_in_place_may_change_in_place() -> None:
    found = [texts for path in SOURCES for name, texts in remedies(path) if name == "edit"]
    fields = {text for texts in found for text in texts[1:] if re.fullmatch(r"[a-z][a-zA-Z]*(\.[a-zA-Z]+)*", text)}
    assert len(fields) >= 9
    assert [field for field in sorted(fields) if field.partition(".")[0] not in MUTABLE] == []
    assert {field for field in fields if field.startswith("resources.")} <= {
        "resources.memory",
        "resources.ephemeralStorage",
    }


def test_a_remedy_leaves_its_consequence_to_the_hint() -> None:
    found = [text for path in SOURCES for _, texts in remedies(path) for text in texts]
    assert len(found) >= 100
    assert [text for text in found if CONSEQUENCE.search(text) or text.endswith(". ")] == []


COMMAND = re.compile(r"\bkubectl (?:-n \S+ )?[a-z]+ (?:(?!kubectl)[^`|;])*")
CLUSTER_WIDE = re.compile(
    r"kubectl (get|delete) node\b|kubectl taint nodes\b|kubectl get namespaces\b|kubectl describe clusterqueue\b"
    r"|kubectl get \w+ -A\b"
)
WHERE = re.compile(r"\{where\}|\{_where\(")
NO_COMMAND: dict[str, str] = {
    "kubectl describe pod what ended it": "the message names the pod",
    "kubectl drain to empty a node": "a node belongs to no namespace",
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

    Where a text is used without a cluster, too, " -n NAMESPACE" is filled in as `where` or by `_where`.
    """
    commands = [found[0] for path in SOURCES for text in texts(path) for found in COMMAND.finditer(text)]
    assert {command.split()[1] for command in commands} >= {"delete", "patch", "create", "logs", "annotate", "describe"}
    assert [words for words in NO_COMMAND if not any(each.startswith(words) for each in commands)] == []
    unsaid = [
        each for each in commands if "-n " not in each and not WHERE.search(each) and not CLUSTER_WIDE.match(each)
    ]
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
