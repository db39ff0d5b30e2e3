"""Provide SERVER_RULES: the rules of AdapterServer and BatchInference, for tunery_api.rules."""

from __future__ import annotations

from typing import Any, Final

from tunery_api.adapterserver import (
    DEFAULT_IN_BATCH,
    DEFAULT_LOADED,
    ENGINE_ARGS,
    ENGINE_RANKS,
    AccessSpec,
    AdapterSelector,
    AdapterServerSpec,
    AdapterSource,
    Alias,
    ClientAccess,
    EngineSpec,
    LabelRequirement,
    RolloutSpec,
)
from tunery_api.batchinference import BatchInput
from tunery_api.cel import (
    CustomCondition,
    Empty,
    Matches,
    Rule,
    allowed_when,
    at_least_one,
    exactly_one,
    is_,
    is_not,
    never,
    requires,
)
from tunery_api.inputs import SecretKeyReference

_TWO_DOTS: Final = "[.][.]"
_HAS_TWO_DOTS: Final = "has two dots in a row"
_NO_KEY: Final = "^([.]$|[.][.])"
_IS_NO_KEY: Final = "is not a valid key of a Secret: . and a leading .. are not allowed"
_RENAME: Final = "use another name"


def _names(raw: Any, field: str) -> set[str]:
    return {each["name"] for each in raw.get(field, ())}


SERVER_RULES: Final[tuple[Rule, ...]] = (
    exactly_one(AdapterSource, "loraJobRef", "adapterMergeRef", "uri"),
    requires(AdapterSource, "manifestSha256", "uri", fix="remove it, because a LoRAJob's adapter is pinned without it"),
    never(AdapterSource, "name", Matches("name", _TWO_DOTS), says=_HAS_TWO_DOTS, fix=_RENAME),
    never(
        LabelRequirement, "values", Empty("values"), is_("operator", "In", "NotIn"),
        says="is required for operator: In and NotIn", fix="list values",
    ),
    allowed_when(LabelRequirement, "values", "operator", "In", "NotIn"),
    at_least_one(
        AdapterSelector, "matchLabels", "matchExpressions",
        says="names no label and would select everything", fix="set matchLabels or matchExpressions",
    ),
    never(
        EngineSpec, "maxRank", is_not("maxRank", *ENGINE_RANKS),
        says="is not a rank of vLLM", fix=f"set one of {', '.join(map(str, ENGINE_RANKS))}",
    ),
    never(
        EngineSpec, "maxLoadedAdapters",
        CustomCondition(
            f"(has(self.maxLoadedAdapters) ? self.maxLoadedAdapters : {DEFAULT_LOADED}) < "
            f"(has(self.maxAdaptersInBatch) ? self.maxAdaptersInBatch : {DEFAULT_IN_BATCH})",
            lambda raw: (
                raw.get("maxLoadedAdapters", DEFAULT_LOADED) < raw.get("maxAdaptersInBatch", DEFAULT_IN_BATCH)
            ),
        ),
        says=f"is less than maxAdaptersInBatch, {DEFAULT_IN_BATCH} by default", fix="raise it",
    ),
    never(
        EngineSpec, "args",
        CustomCondition(
            f"has(self.args) && !self.args.all(a, {list(ENGINE_ARGS)}.exists(flag, a == flag || "
            "a.startsWith(flag + '=')))",
            lambda raw: any(each.partition("=")[0] not in ENGINE_ARGS for each in raw.get("args", ())),
        ),
        says="has a flag that a manifest cannot set", fix=f"use {', '.join(ENGINE_ARGS)}, as --flag or --flag=value",
    ),
    never(
        EngineSpec, "args",
        CustomCondition(
            "has(self.args) && self.args.exists(a, a.contains('/'))",
            lambda raw: any("/" in each for each in raw.get("args", ())),
        ),
        says="has a flag with a path, and the engine may only read its model", fix="remove the flag",
    ),
    never(
        RolloutSpec, "", is_("maxSurge", 0), is_("maxUnavailable", 0),
        says="has maxSurge: 0 and maxUnavailable: 0, so that no replica could be replaced", fix="raise one of the two",
    ),
    never(Alias, "name", Matches("name", _TWO_DOTS), says=_HAS_TWO_DOTS, fix=_RENAME),
    never(
        Alias, "targets",
        CustomCondition(
            "!self.targets.exists(t, !has(t.weight) || t.weight > 0)",
            lambda raw: not any(each.get("weight", 1) for each in raw["targets"]),
        ),
        says="all have weight 0, so that no request could be answered", fix="raise one of the weights",
    ),
    requires(AccessSpec, "clients", "apiKeysSecretRef", fix="set it, because clients are identified by their API keys"),
    never(ClientAccess, "name", Matches("name", _NO_KEY), says=_IS_NO_KEY, fix="use the name of a key"),
    never(
        AdapterServerSpec, "aliases",
        CustomCondition(
            "has(self.aliases) && has(self.adapters) && "
            "self.aliases.exists(a, self.adapters.exists(x, x.name == a.name))",
            lambda raw: not _names(raw, "aliases").isdisjoint(_names(raw, "adapters")),
        ),
        says="has the name of an adapter", fix=_RENAME,
    ),
    never(
        AdapterServerSpec, "aliases",
        CustomCondition(
            "has(self.aliases) && "
            "self.aliases.exists(a, a.targets.exists(t, self.aliases.exists(b, b.name == t.adapter)))",
            lambda raw: any(
                target["adapter"] in _names(raw, "aliases")
                for alias in raw.get("aliases", ())
                for target in alias["targets"]
            ),
        ),
        says="has an alias as its target", fix="name the adapter itself",
    ),
    never(
        AdapterServerSpec, "adapters",
        CustomCondition(
            "has(self.adapters) && has(self.model.servedName) && "
            "self.adapters.exists(a, a.name == self.model.servedName)",
            lambda raw: raw["model"].get("servedName") in _names(raw, "adapters"),
        ),
        says="has the name of the base model", fix="use another name, or another model.servedName",
    ),
    never(SecretKeyReference, "key", Matches("key", _NO_KEY), says=_IS_NO_KEY, fix="use the name of a key"),
    never(
        BatchInput, "uri", Matches("uri", "[*?[]"),
        says="has *, ? or [, and the input is one file", fix="name one file, and use one object for each",
    ),
    never(
        BatchInput, "uri", Matches("uri", "[.]jsonl([.]gz|[.]zst)?$", negated=True),
        Matches("uri", "^configmap://", negated=True),
        says="is not a file of JSON lines", fix="name a file that ends with .jsonl, .jsonl.gz or .jsonl.zst",
    ),
)  # fmt: skip
