"""What the spec of an AdapterServer must not say although the schema allows it: each rule one small function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tunery_api.adapterserver import ENGINE_ARGS, ENGINE_RANKS, AdapterServerSpec, LabelOperator
from tunery_api.batchinference import BatchInferenceSpec
from tunery_api.errors import FieldError, near

Errors = Iterator[FieldError]
LARGEST_CLIENTS: Final = 200_000
"""Characters; with what is served they stand in one ConfigMap."""


def adapters(spec: AdapterServerSpec) -> Errors:
    """Each adapter from one place, under a name of its own that is not the base model's."""
    seen: set[str] = set()
    base = spec.model.effective_served_name()
    for index, item in enumerate(spec.adapters or ()):
        at = f"spec.adapters[{index}]"
        sources = [item.lora_job_ref, item.adapter_merge_ref, item.uri]
        if sum(source is not None for source in sources) != 1:
            yield FieldError(at, "takes exactly one of loraJobRef, adapterMergeRef and uri")
        if item.manifest_sha256 is not None and item.uri is None:
            yield FieldError(f"{at}.manifestSha256", "goes with uri; what a LoRAJob published is pinned by itself")
        if ".." in item.name:
            yield FieldError(f"{at}.name", "must not have two dots in a row")
        if item.name == base:
            yield FieldError(f"{at}.name", f"{base} is the name of the base model; take another, or set servedName")
        if item.name in seen:
            yield FieldError(f"{at}.name", f"{item.name} is the name of another adapter of this server")
        seen.add(item.name)


def aliases(spec: AdapterServerSpec) -> Errors:
    """An alias has a name of its own, and leads to adapters, some of which get requests."""
    named = {item.name for item in spec.adapters or ()} | {spec.model.effective_served_name()}
    known = {alias.name for alias in spec.aliases or ()}
    seen: set[str] = set()
    for index, alias in enumerate(spec.aliases or ()):
        at = f"spec.aliases[{index}]"
        if alias.name in named:
            yield FieldError(f"{at}.name", f"{alias.name} is the name of an adapter or of the base model")
        if alias.name in seen:
            yield FieldError(f"{at}.name", f"{alias.name} is the name of another alias")
        if ".." in alias.name:
            yield FieldError(f"{at}.name", "must not have two dots in a row")
        seen.add(alias.name)
        targets = [target.adapter for target in alias.targets]
        for place, target in enumerate(targets):
            if target in known:
                yield FieldError(f"{at}.targets[{place}].adapter", f"{target} is an alias; name the adapter itself")
            if target in targets[:place]:
                yield FieldError(f"{at}.targets[{place}].adapter", f"{target} is a target already; add its weights up")
        if not any(target.weight for target in alias.targets):
            yield FieldError(f"{at}.targets", "all have weight 0: no request could go anywhere")


def clients(spec: AdapterServerSpec) -> Errors:
    """Clients are told from each other by their keys."""
    listed = spec.access.clients or ()
    if listed and spec.access.api_keys_secret_ref is None:
        yield FieldError("spec.access.clients", "needs apiKeysSecretRef: without keys nobody knows who asks")
    names = [client.name for client in listed]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield FieldError(f"spec.access.clients[{index}].name", f"{name} is listed already")


def client_names(spec: AdapterServerSpec) -> Errors:
    """What clients may ask for has room beside what is served."""
    size = sum(len(name) for client in spec.access.clients or () for name in (client.name, *client.models))
    if size > LARGEST_CLIENTS:
        text = f"names of {size:,} characters in all, at most {LARGEST_CLIENTS:,} have room"
        yield FieldError("spec.access.clients", f"{text}; list fewer, or let a second server answer some of them")


def key_problem(name: str) -> str | None:
    """Return why a Secret cannot have a key of this name although all signs of it may stand in one."""
    if name != "." and not name.startswith(".."):
        return None
    return f"{name} is no name that a key of a Secret can have: no such name is a dot, or begins with two"


def client_keys(spec: AdapterServerSpec) -> Errors:
    """A client is called as a key of the Secret is."""
    for index, client in enumerate(spec.access.clients or ()):
        if (problem := key_problem(client.name)) is not None:
            yield FieldError(f"spec.access.clients[{index}].name", problem)


def api_key(spec: BatchInferenceSpec) -> Errors:
    """The API key is a key of a Secret."""
    if spec.api_key_secret_ref is not None and (problem := key_problem(spec.api_key_secret_ref.key)) is not None:
        yield FieldError("spec.apiKeySecretRef.key", problem)


def selector(spec: AdapterServerSpec) -> Errors:
    """A selector names labels, and values where its operators need them."""
    chosen = spec.adapter_selector
    if chosen is None:
        return
    if not chosen.match_labels and not chosen.match_expressions:
        yield FieldError("spec.adapterSelector", "names no label: it would select everything")
    for index, item in enumerate(chosen.match_expressions or ()):
        needs = item.operator in (LabelOperator.IN, LabelOperator.NOT_IN)
        if needs != bool(item.values) or (item.values is not None and not needs):
            at = f"spec.adapterSelector.matchExpressions[{index}].values"
            yield FieldError(at, "goes with In and NotIn, which need it")


def engine(spec: AdapterServerSpec) -> Errors:
    """Limits that vLLM takes, and flags that open nothing."""
    chosen = spec.engine
    if chosen.max_rank not in ENGINE_RANKS:
        ranks = ", ".join(map(str, ENGINE_RANKS))
        yield FieldError("spec.engine.maxRank", f"must be one of {ranks}, is {chosen.max_rank}")
    if chosen.max_loaded_adapters < chosen.max_adapters_in_batch:
        yield FieldError(
            "spec.engine.maxLoadedAdapters",
            f"must be at least maxAdaptersInBatch, which is {chosen.max_adapters_in_batch}",
        )
    for index, argument in enumerate(chosen.args or ()):
        flag = argument.split("=", 1)[0]
        if flag not in ENGINE_ARGS:
            text = f"{flag} is not among the flags that a manifest may give" + near(flag, list(ENGINE_ARGS))
            yield FieldError(f"spec.engine.args[{index}]", f"{text}; they are {', '.join(ENGINE_ARGS)}")
        elif "/" in argument:
            text = "must not name a path: the engine reads its model, and nothing else"
            yield FieldError(f"spec.engine.args[{index}]", text)


def rollout(spec: AdapterServerSpec) -> Errors:
    """A change needs room: a replica more, or one fewer meanwhile."""
    if spec.rollout.max_surge + spec.rollout.max_unavailable == 0:
        yield FieldError("spec.rollout", "maxSurge and maxUnavailable cannot both be 0: no replica could be replaced")


def one_file(spec: BatchInferenceSpec) -> Errors:
    """The input is one file: its lines are counted and resumed from."""
    uri = spec.input.uri
    if any(sign in uri.partition("://")[2] for sign in "*?["):
        yield FieldError("spec.input.uri", "names one file; ask for several in several objects")
    elif not uri.removesuffix(".gz").removesuffix(".zst").endswith(".jsonl") and not uri.startswith("configmap://"):
        yield FieldError("spec.input.uri", "must end with .jsonl, .jsonl.gz or .jsonl.zst: lines of JSON")


BATCHINFERENCE_RULES: Final = (one_file, api_key)
ADAPTERSERVER_RULES: Final = (adapters, aliases, clients, client_keys, client_names, selector, engine, rollout)
