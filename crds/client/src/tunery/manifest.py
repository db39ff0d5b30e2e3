"""Read manifests as kubectl does, report every error in them before anything is sent, and create their objects."""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from tunery.cluster import Cluster, Json, resource_of
from tunery.errors import Conflict, InvalidManifest, TuneryError, UsageError
from tunery.objects import View, view
from tunery_api.errors import FieldError, InvalidSpec, did_you_mean, format_value, object_errors
from tunery_api.kinds import KINDS, Kind
from tunery_api.kubectl_yaml import KubectlLoader, documents_of
from tunery_api.names import API_VERSION, GROUP, HOST_NAME, LONGEST_HOST_NAME
from tunery_api.validation import parse_adaptermerge, parse_adapterserver, parse_batchinference, parse_lorajob
from tunery_search.validation import parse_lorasweep

_PARSERS: Final[Mapping[Kind, Callable[[Any], Any]]] = {
    Kind.LORAJOB: parse_lorajob,
    Kind.ADAPTERMERGE: parse_adaptermerge,
    Kind.ADAPTERSERVER: parse_adapterserver,
    Kind.BATCHINFERENCE: parse_batchinference,
    Kind.LORASWEEP: parse_lorasweep,
}
_FIELD: Final = re.compile("[A-Za-z0-9_-]+")

_LONGEST_BASE: Final = 40
"""The most characters of a name before its random suffix: tables then show the name of a pod in full."""
_SUFFIX: Final = "bcdfghjklmnpqrstvwxz2456789"
"""The characters of generated names in Kubernetes: without vowels, so that they form no words."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One valid manifest."""

    body: Json
    namespace: str | None
    """None: the namespace of the command line."""

    @property
    def kind(self) -> Kind:
        """The kind."""
        return Kind(self.body["kind"])

    @property
    def reference(self) -> str:
        """The object as kubectl names it, such as lorajob/support; with generateName what its name begins with."""
        metadata = self.body["metadata"]
        return f"{self.kind.singular}/{metadata.get('name') or metadata.get('generateName')}"


def parse_documents(text: str, source: str) -> list[Any]:
    """Return the documents of YAML or JSON as kubectl reads it, with the items of a List in place of it.

    `source` names the text in errors. Raises UsageError if it is not valid or has no document.
    """
    try:
        found = [document for document in documents_of(text) if document is not None]
    except json.JSONDecodeError as error:
        raise UsageError(f"{source} is not valid JSON: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    documents = [item for document in found for item in _items(document)]
    if not documents:
        raise UsageError(f"{source} has no document", "Name a file with the manifest of an object, such as a LoRAJob")
    return documents


def _items(document: Any) -> list[Any]:
    """Return the items of a List, which `kubectl get -o yaml` prints, or else the document itself."""
    if isinstance(document, Mapping) and str(document.get("kind")).endswith("List"):
        items = document.get("items")
        return items if isinstance(items, list) else [document]
    return [document]


def validate(documents: Sequence[Any], source: str, namespace: str | None = None) -> list[Manifest]:
    """Return the manifests of all documents.

    `namespace` is that of the command line, with which metadata.namespace must agree. Raises InvalidManifest with every
    error of every document, UsageError for another namespace.
    """
    errors: list[tuple[str, FieldError]] = []
    seen: set[tuple[Any, ...]] = set()
    for number, document in enumerate(documents, 1):
        title = _title(document, number, len(documents))
        found = list(_errors(document))
        key = _identity(document)
        if key in seen:
            found.append(FieldError("metadata.name", f"{source} has this object twice. Fix: remove or rename one"))
        seen |= {key} if key else set()
        errors += [(title, error) for error in found]
    if errors:
        raise InvalidManifest(source, errors)
    return [_manifest(document, source, namespace) for document in documents]


def _manifest(document: Json, source: str, namespace: str | None) -> Manifest:
    own = document["metadata"].get("namespace") or None
    if own and namespace and own != namespace:
        message = f"metadata.namespace in {source} is {own}, but the option -n is {namespace}"
        raise UsageError(message, f"Omit -n, or write -n {own}")
    return Manifest(document, own)


def _errors(document: Any) -> Iterator[FieldError]:
    """Yield every error of a document."""
    if not isinstance(document, Mapping):
        yield FieldError("manifest", f"must be a mapping with apiVersion, kind, metadata and spec, is {document!r:.60}")
        return
    kind, version = document.get("kind"), document.get("apiVersion")
    if isinstance(version, str) and version.partition("/")[0] != GROUP:
        text = f"{format_value(kind)} of {version} is not a kind of {API_VERSION}. Fix: create it by kubectl apply"
        yield FieldError("kind", text)
        return
    if not isinstance(kind, str) or kind not in _PARSERS:
        wanted = f"must be one of {', '.join(Kind)}"
        yield FieldError("kind", f"{wanted}, is {format_value(kind)}{did_you_mean(str(kind), Kind)}")
        return
    definition = KINDS[Kind(kind)]
    yield from object_errors(document, [info.alias or name for name, info in definition.spec.model_fields.items()])
    if definition.host_name:
        yield from _host_name_errors(document)
    try:
        _PARSERS[Kind(kind)](document)
    except InvalidSpec as invalid:
        yield from invalid.errors


def _host_name_errors(document: Mapping[str, Any]) -> Iterator[FieldError]:
    """Yield the error of a name that can't be part of a host name, as the API server's rule does."""
    _, _, name = _identity(document) or (None, None, None)
    if isinstance(name, str) and (not re.fullmatch(HOST_NAME, name) or len(name) > LONGEST_HOST_NAME):
        wanted = f"must have at most {LONGEST_HOST_NAME} lower-case letters, digits and -, and begin with a letter"
        yield FieldError("metadata.name", f"{wanted}: it becomes part of a host name, is {format_value(name)}")


def _identity(document: Any) -> tuple[Any, Any, Any] | None:
    """Return kind, namespace and name of a document that has them."""
    metadata = document.get("metadata") if isinstance(document, Mapping) else None
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("name"), str):
        return None
    return str(document.get("kind")), str(metadata.get("namespace")), metadata["name"]


def _title(document: Any, number: int, count: int) -> str:
    """Return how errors name a document: "" if it is the only one."""
    kind, _, name = _identity(document) or ("", "", "")
    return f"document {number} ({kind} {name})".replace(" ( )", "") if count > 1 else ""


def create(cluster: Cluster, manifests: Iterable[Manifest], *, dry_run: bool = False) -> Iterator[View]:
    """Create objects in order, and yield each as the API server returned it.

    With `dry_run` the API server validates them only. Raises Conflict if an object exists, TuneryError.
    """
    for manifest in manifests:
        target = cluster.within(manifest.namespace)
        try:
            body = target.create(resource_of(manifest.kind), manifest.body, dry_run=dry_run)
        except Conflict as error:
            raise _exists(manifest, target.namespace, error) from error
        except TuneryError as error:
            raise type(error)(error.reason, f"{manifest.reference}: {error.message}", error.remedy) from error
        yield view(body, manifest.kind)


def _exists(manifest: Manifest, namespace: str, error: Conflict) -> TuneryError:
    """Return the error of an object that exists, with how to run or change it instead."""
    if error.reason != "AlreadyExists":
        return Conflict(error.reason, f"{manifest.reference}: {error.message}", error.remedy)
    name = manifest.body["metadata"].get("name")
    remedy = (
        f"To run it again under a new name: tunery resubmit {manifest.kind.singular}/{name} -n {namespace}. "
        f"To change its mutable fields: kubectl apply -n {namespace} -f FILE"
    )
    return Conflict(error.reason, f"{manifest.reference} exists already in namespace {namespace}", remedy)


def unique_name(base: str) -> str:
    """Return a name of a base and five random characters, as the API server generates one."""
    return f"{base[:_LONGEST_BASE].rstrip('-.')}-{''.join(secrets.choice(_SUFFIX) for _ in range(5))}"


def with_settings(spec: Json, settings: Iterable[str]) -> Json:
    """Return a copy of a spec with settings such as training.epochs=3; the value null removes a field.

    A value is read as in a manifest: 2e-4 is a number, [q_proj, v_proj] a list. Raises UsageError.
    """
    changed = copy.deepcopy(spec)
    for setting in settings:
        path, equals, text = setting.partition("=")
        names = path.strip().removeprefix("spec.").split(".")
        if not equals or not all(map(_FIELD.fullmatch, names)):
            raise UsageError(f"--set {setting} is not PATH=VALUE", "Write it like --set training.epochs=3")
        block = changed
        for name in names[:-1]:
            block = block.setdefault(name, {})
            if not isinstance(block, dict):
                raise UsageError(
                    f"--set {setting}: {name} has no fields", "Set it as a whole, such as --set lora={rank: 8}"
                )
        value = _value(setting, text)
        if value is None:
            block.pop(names[-1], None)
        else:
            block[names[-1]] = value
    return changed


def _value(setting: str, text: str) -> Any:
    """Return the value of a setting, read as in a manifest. Raises UsageError."""
    try:
        return KubectlLoader(text).get_single_data()
    except yaml.YAMLError as error:
        raise UsageError(f"--set {setting}: the value is not valid YAML", "Put it in quotes") from error


class _Dumper(yaml.SafeDumper):
    """Quotes each string that kubectl would read as another type, such as "1e3" and "y"."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that occurs twice in full."""
        return True


_TAG: Final = "tag:yaml.org,2002:"
_Dumper.yaml_implicit_resolvers = KubectlLoader.yaml_implicit_resolvers
# For kubectl, and so for its resolvers, 1 and 1.5 are numbers alike.
_Dumper.add_representer(int, lambda dumper, value: dumper.represent_scalar(f"{_TAG}float", str(value)))


def to_yaml(body: Json) -> str:
    """Return a manifest as YAML that kubectl reads as the same object."""
    return yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
