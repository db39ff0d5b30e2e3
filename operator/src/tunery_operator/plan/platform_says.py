"""What of an object's pods the platform says and the manifest does not: so that a hint can name whose it is to mend."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tunery_api.kinds import Kind
from tunery_api.placement import SchedulingSpec
from tunery_operator.settings import Placement, Settings


class Value(NamedTuple):
    """A value of the chart, or a field of the manifest."""

    name: str
    """As values.yaml or the manifest has it; several are joined by " or "."""
    content: str
    """What it says, in words."""


class PlatformSays(NamedTuple):
    """The chart's values by the field of the pod that they say, and beside them the names below."""

    work: Mapping[str, Value] = {}
    """Of pods that train, merge, ask or serve."""
    checks: Mapping[str, Value] = {}
    """Of pods that check, report or publish."""


SAYS_NOTHING: Final = PlatformSays()
AUTHORITIES: Final = "ca-bundle"
"""The volume of trainer.caBundle."""
CACHE: Final = "cache"
"""The claim of cache.claimName, where the pods mount it and the manifest names none of its own."""
IMAGE: Final = "image"
"""The image of a Job's container, or of a server's door and of what brings its model."""
ENGINE_IMAGE: Final = "engine-image"
"""The image of a server's engine, where the manifest names none."""
DOOR: Final = "door"
"""What the door of a server has."""
OWN_NODES: Final = "own-nodes"
"""What the manifest itself asks of nodes."""
OWN_CLAIMS: Final = "own-claims"
"""The claims that the manifest itself names."""
OWN_RESOURCES: Final = "own-resources"
"""What the manifest itself says of a server's engine."""
_AMOUNTS: Final = frozenset({"cpu", "memory", "ephemeralStorage"})
_CLAIM: Final = re.compile(r"\bpvc://([a-z0-9.-]+)")


def platform_says(kind: Kind, spec: Mapping[str, Any], settings: Settings, gpus: int) -> PlatformSays:
    """Return what the platform says beside the spec of an object, which may be of any version."""
    template, scheduling = settings.pod_template, spec.get("scheduling") or {}
    layers = [("trainer.gpu", template.gpu)] if gpus else []
    shared = _shared(kind, spec, settings)
    return PlatformSays(
        _beside(scheduling, [*layers, ("trainer", template)])
        | shared
        | _nodes(scheduling)
        | _of_server(kind, spec, settings),
        _beside({}, [("preflight", settings.preflight_scheduling)]) | shared,
    )


def _shared(kind: Kind, spec: Mapping[str, Any], settings: Settings) -> dict[str, Value]:
    """Return what holds for all pods of an object."""
    found: dict[str, Value] = {}
    if bundle := settings.pod_template.ca_bundle.config_map:
        found[AUTHORITIES] = Value("trainer.caBundle", bundle)
    if kind is Kind.LORAJOB and settings.cache_claim and not spec.get("cache"):
        found[CACHE] = Value("cache.claimName", settings.cache_claim)
    if claims := sorted(set(_CLAIM.findall(json.dumps(spec, default=str)))):
        found[OWN_CLAIMS] = Value("", ", ".join(claims))
    if kind in (Kind.BATCHINFERENCE, Kind.ADAPTERSERVER):
        found[IMAGE] = Value("serving.server.image", settings.serving.server_image)
    else:
        found[IMAGE] = Value("trainer.image", settings.trainer_image)
    return found


def _nodes(scheduling: Mapping[str, Any]) -> dict[str, Value]:
    """Return what a manifest asks of nodes: a selector and a demand of its affinity keep others away alike."""
    selector = scheduling.get("nodeSelector") or {}
    affinity = ((scheduling.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    asked = {"nodeSelector": ", ".join(f"{label}={value}" for label, value in selector.items())}
    asked["affinity"] = "what its affinity demands" if affinity else ""
    asked = {name: words for name, words in asked.items() if words}
    if not asked:
        return {}
    return {OWN_NODES: Value(" and ".join(f"spec.scheduling.{name}" for name in asked), ", ".join(asked.values()))}


def _of_server(kind: Kind, spec: Mapping[str, Any], settings: Settings) -> dict[str, Value]:
    if kind is not Kind.ADAPTERSERVER:
        return {}
    door, own = settings.serving.server_resources, spec.get("resources") or {}
    found = {
        DOOR: Value("serving.server.resources", f"{door.cpu}, {door.memory}, {door.ephemeral_storage}"),
        OWN_RESOURCES: Value("spec.resources", ", ".join(str(own[name]) for name in own if name in _AMOUNTS)),
    }
    if not (spec.get("engine") or {}).get("image"):
        found[ENGINE_IMAGE] = Value("serving.engine.image", settings.serving.engine_image)
    return found


def _beside(own: Mapping[str, Any], layers: list[tuple[str, Placement]]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for field in ("priority_class_name", "runtime_class_name"):
        name = SchedulingSpec.model_fields[field].alias or field
        said = [(place, value) for place, layer in layers if (value := getattr(layer, field)) is not None]
        if said and own.get(name) is None:
            found[name] = Value(f"{said[0][0]}.{name}", said[0][1])
    taken = set(own.get("nodeSelector") or ())
    for place, layer in layers:
        new = {label: value for label, value in layer.node_selector.items() if label not in taken}
        if new:
            before = found.get("nodeSelector")
            words = ", ".join(f"{label}={value}" for label, value in new.items())
            both = Value(f"{before.name} or {place}.nodeSelector", f"{before.content}, {words}") if before else None
            found["nodeSelector"] = both or Value(f"{place}.nodeSelector", words)
            taken |= new.keys()
    return found
