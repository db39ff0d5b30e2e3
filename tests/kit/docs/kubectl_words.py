"""What is wrong with a kubectl command of the docs: verb, flags, resources, paths, conditions, labels of ours."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from tunery_api import names
from tunery_api.serverstatus import ServerCondition, ServerPhase
from tunery_api.status import ConditionType, Phase

from kit.docs.schemas import Kind, kinds
from kit.shown import ROOT, Command
from tools.cluster import binaries

_OPTION: Final = re.compile(r"^ +(?:-(?P<short>\w), )?--(?P<long>[\w-]+)=(?P<default>\S*):$", re.MULTILINE)
_TWO_WORDS: Final = {"create", "rollout", "auth", "config", "set", "top", "certificate"}
"""Verbs whose next word is a part of the verb."""
_RESOURCE_VERBS: Final = {"get", "describe", "delete", "wait", "label", "annotate", "patch", "edit", "scale", "events"}
_NAMES: Final = (
    "pod po pods job jobs jobs.batch deployment deployments deploy service services svc secret secrets configmap "
    "configmaps cm namespace namespaces ns node nodes event events lease leases crd crds resourcequota resourcequotas "
    "quota networkpolicy networkpolicies serviceaccount serviceaccounts sa persistentvolumeclaim pvc role roles "
    "rolebinding rolebindings clusterrole clusterroles limitrange limitranges endpointslices all "
    "validatingadmissionpolicy validatingadmissionpolicies certificate certificates localqueue localqueues "
    "clusterqueue clusterqueues "
    "resourceflavor resourceflavors workload workloads workloads.kueue.x-k8s.io"
)
_BUILT_IN: Final = frozenset(_NAMES.split())
_OURS: Final = "tunery.dev/"
_KEYS: Final = {value for value in vars(names).values() if isinstance(value, str) and value.startswith(_OURS)}
_ROLES: Final = {"preflight", "train", "merge", "publish-best", "batch", "report", "publish", "serve"}
_WORD: Final = re.compile(r"^[\w.-]+$")
"""What can be the name of a resource, and no variable."""


@cache
def kubectl() -> str:
    return str(binaries.kubernetes() / "kubectl")


@cache
def told(*arguments: str) -> str:
    """Return what kubectl prints, without a cluster."""
    return subprocess.run([kubectl(), *arguments], capture_output=True, text=True, timeout=30, check=False).stdout


@cache
def options(verb: tuple[str, ...]) -> dict[str, bool] | None:
    """Return the flags of a verb, and for each whether a value follows; None where kubectl has no such verb."""
    page = told(*verb, "--help")
    if f"kubectl {' '.join(verb)}" not in page:
        return None
    found: dict[str, bool] = {"-h": False, "--help": False}
    for match in _OPTION.finditer(page + told("options")):
        valued = match["default"] not in ("true", "false")
        found[f"--{match['long']}"] = valued
        if match["short"]:
            found[f"-{match['short']}"] = valued
    return found


@dataclass(frozen=True)
class Read:
    """A command, taken apart."""

    verb: tuple[str, ...]
    positional: list[str]
    flags: list[tuple[str, str]]

    def values(self, *flags: str) -> list[str]:
        return [value for name, value in self.flags if name in flags]

    def named(self) -> list[str]:
        """Return the resources that it names."""
        if self.verb[0] not in _RESOURCE_VERBS or not self.positional:
            return []
        slashed = [word.partition("/")[0] for word in self.positional if "/" in word and "=" not in word]
        return slashed or self.positional[0].split(",")

    def kind(self) -> Kind | None:
        """Return the kind of ours that it is about."""
        return next((kinds()[name] for name in self.named() if name in kinds()), None)


def read(command: Command) -> Read | str:
    """Take a command apart; a sentence where kubectl would not take it."""
    words = list(command.words[1:])
    lead: list[str] = []
    while words and words[0].startswith("-"):  # kubectl -n team-a get …
        lead.append(words.pop(0))
        if words and "=" not in lead[-1] and lead[-1] in ("-n", "--namespace", "--as", "--context", "--kubeconfig"):
            lead.append(words.pop(0))
    size = 2 if words and words[0] in _TWO_WORDS else 1
    verb, rest = tuple(words[:size]), lead + words[size:]
    if verb[:2] == ("create", "secret"):
        verb, rest = (*verb, words[2]), lead + words[3:]
    if verb and verb[0] == "create" and size == 2 and verb[1].startswith("-"):
        verb, rest = verb[:1], lead + words[1:]
    known = options(verb)
    if known is None:
        return f"kubectl has no command {' '.join(verb)}"
    positional: list[str] = []
    flags: list[tuple[str, str]] = []
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        name, equals, value = word.partition("=")
        if not word.startswith("--") and len(name) > 2 and name[:2] in known:
            name, value, equals = name[:2], word[2:], "="
        if name not in known:
            return f"kubectl {' '.join(verb)} has no flag {name}"
        if known[name] and not equals:
            if not rest:
                return f"{name} wants a value"
            value = rest.pop(0)
        flags.append((name, value))
    return Read(verb, positional, flags)


def problems(command: Command, files: Callable[[str], bool]) -> Iterator[str]:
    """Return what is wrong; `files` says whether a reader has a file of that name."""
    found = read(command)
    if isinstance(found, str):
        yield found
        return
    for name in found.named():
        if name not in kinds() and name not in _BUILT_IN and _WORD.match(name):
            yield f"there is no resource {name}"
    for path in found.values("-f", "--filename"):
        if path == "-":
            continue
        if not (ROOT / path).exists() and not files(path):
            yield f"{path} is no file of the repository, and the page does not say where it comes from"
    yield from _keys(found)
    yield from _explained(found)
    kind = found.kind()
    if kind is not None:
        yield from _paths(found, kind)
        yield from _selected(found, kind)
        yield from _awaited(found, kind)
        yield from _patched(found, kind)


def _keys(found: Read) -> Iterator[str]:
    """Labels and annotations of ours."""
    selectors = [part for value in found.values("-l", "--selector") for part in value.split(",")]
    for word in [*selectors, *(found.positional[1:] if found.verb[0] in ("label", "annotate") else [])]:
        key, _, value = word.lstrip("!").partition("=")
        if key.startswith(_OURS) and key.rstrip("-") not in _KEYS:
            yield f"nothing has the label or annotation {key}"
        if key == names.ROLE_LABEL and value and value not in _ROLES:
            yield f"no pod has the role {value}"


def _explained(found: Read) -> Iterator[str]:
    if found.verb == ("explain",) and found.positional:
        first, _, path = found.positional[0].partition(".")
        if first not in kinds():
            yield f"there is no resource {first}"
        elif missing := kinds()[first].missing(path):
            yield f"{first} has no field {path}: {missing}"


def _paths(found: Read, kind: Kind) -> Iterator[str]:
    texts = [text for text in found.values("-o", "--output") if re.match(r"(jsonpath|custom-columns)=", text)]
    texts += [text for text in found.values("--for") if text.startswith("jsonpath=")]
    for text in texts:
        form, _, shown = text.partition("=")
        if form == "custom-columns":
            paths = [column.partition(":")[2] for column in shown.split(",")]
        elif not re.match(r".*\{.*\}", shown, re.DOTALL):
            yield f"{shown}: a JSONPath stands in braces"
            continue
        else:
            paths = [*_read_paths(shown)]
        for path in paths:
            missing = kind.missing(path.removeprefix(".items[*]"))
            if missing:
                yield f"{kind.name} has no field {path}: {missing}"
    for path in found.values("--sort-by"):
        if missing := kind.missing(path.strip("{}")):
            yield f"{kind.name} has no field {path}: {missing}"


def _read_paths(text: str) -> Iterator[str]:
    """Return the paths of a JSONPath template, those within a range from the object's root."""
    within = [""]
    for part in re.findall(r"\{([^{}]*)\}", text):
        word, _, path = part.partition(" ")
        if word == "range":
            within.append(within[-1] + path)
            yield within[-1]
        elif word == "end":
            within.pop()
        elif part.startswith("."):
            yield within[-1] + part


def _selected(found: Read, kind: Kind) -> Iterator[str]:
    phases = {each.value for each in (ServerPhase if kind.name == "AdapterServer" else Phase)}
    for part in [part for value in found.values("--field-selector") for part in value.split(",")]:
        field, _, value = part.partition("=")
        if field not in {*kind.selectable, "metadata.name", "metadata.namespace"}:
            yield f"{kind.name} cannot be selected by {field}"
        elif field == "status.phase" and value.lstrip("=") not in phases:
            yield f"{kind.name} has no phase {value}"


def _awaited(found: Read, kind: Kind) -> Iterator[str]:
    known = {each.value for each in (ServerCondition if kind.name == "AdapterServer" else ConditionType)}
    for value in found.values("--for"):
        form, _, name = value.partition("=")
        if form == "condition" and name.partition("=")[0] not in known:
            yield f"{kind.name} has no condition {name}"


def _patched(found: Read, kind: Kind) -> Iterator[str]:
    for text in found.values("-p", "--patch"):
        try:
            patch: Any = json.loads(text)
        except json.JSONDecodeError as error:
            yield f"{text} is no JSON: {error}"
            continue
        if "json" in found.values("--type"):
            steps = [step["path"].replace("/", ".") for step in patch]
            missing = [path for path in steps if kind.missing(path)]
        else:
            if "merge" not in found.values("--type"):
                yield "objects of ours are patched with --type=merge"
            missing = [*kind.unknown(patch)]
        yield from (f"{kind.name} has no field {path}" for path in missing)
