"""Where pods run and what they carry: what the manifest says, then what the platform says for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from tunery_api.fields import parse_quantity
from tunery_api.names import GROUP, TOPOLOGY_ANNOTATIONS
from tunery_api.placement import ResourcesSpec, SchedulingSpec, Toleration
from tunery_operator.plan.types import PodExtras
from tunery_operator.settings import Placement, Settings
from tunery_operator.views.owner import Owner

_OF_OTHERS: Final = (f"{GROUP}/", "batch.kubernetes.io/", "kubectl.kubernetes.io/")
_SHM_OF_A_GPU: Final = 2**30
_OF_JOBS: Final = ("job-name", "controller-uid")
"""Labels that Kubernetes gives to the pods of a Job; it refuses a Job whose pods have another value of them."""


def work_scheduling(spec: SchedulingSpec, settings: Settings, gpus: int) -> SchedulingSpec:
    """Return where the pods that train or merge run."""
    template = settings.pod_template
    return _placed(spec, template.gpu, template) if gpus else _placed(spec, template)


def check_scheduling(spec: SchedulingSpec, settings: Settings) -> SchedulingSpec:
    """Return where the pods without a GPU run that check and report.

    Of the manifest they take its account and what it tolerates: it selects nodes for the sake of their GPUs.
    """
    own = SchedulingSpec(service_account_name=spec.service_account_name, tolerations=spec.tolerations)
    return _placed(own, settings.preflight_scheduling)


def _placed(spec: SchedulingSpec, *placements: Placement) -> SchedulingSpec:
    """Lay placements below a scheduling: what comes first wins, tolerations add up."""
    layers: tuple[SchedulingSpec | Placement, ...] = (spec, *placements)
    selector: dict[str, str] = {}
    for layer in reversed(layers):
        selector |= layer.node_selector or {}
    change: dict[str, Any] = {
        "node_selector": selector or None,
        "tolerations": list(_tolerations(layers)) or None,
        "priority_class_name": _first(layers, "priority_class_name"),
        "runtime_class_name": _first(layers, "runtime_class_name"),
    }
    # Only what is set: run.json and the pod hold nothing that nobody asked for.
    return spec.model_copy(update={name: value for name, value in change.items() if value is not None})


def _tolerations(layers: tuple[SchedulingSpec | Placement, ...]) -> Iterator[Toleration]:
    """Yield each toleration once."""
    seen: list[Toleration] = []
    for layer in layers:
        for toleration in layer.tolerations or ():
            if toleration not in seen:
                seen.append(toleration)
                yield toleration


def _first(layers: tuple[SchedulingSpec | Placement, ...], field: str) -> str | None:
    return next((value for layer in layers if (value := getattr(layer, field)) is not None), None)


class Value(NamedTuple):
    """A value of the chart."""

    name: str
    """As values.yaml has it; several are joined by " or "."""
    content: str
    """What it says, in words."""


class PlatformSays(NamedTuple):
    """What of a pod the platform says and the manifest does not: the chart's values, by the field of the pod."""

    work: Mapping[str, Value] = {}
    """Of pods that train, merge, ask or serve."""
    checks: Mapping[str, Value] = {}
    """Of pods that check, report or publish."""


SAYS_NOTHING: Final = PlatformSays()
AUTHORITIES: Final = "ca-bundle"
"""The volume of trainer.caBundle; in PlatformSays it stands beside the fields of a pod."""


def platform_says(scheduling: Mapping[str, Any], settings: Settings, gpus: int) -> PlatformSays:
    """Return what the platform says beside the scheduling of an object, which may be of any version."""
    template = settings.pod_template
    layers = [("trainer.gpu", template.gpu)] if gpus else []
    bundle = template.ca_bundle.config_map
    shared = {AUTHORITIES: Value("trainer.caBundle", bundle)} if bundle else {}
    return PlatformSays(
        _beside(scheduling, [*layers, ("trainer", template)]) | shared,
        _beside({}, [("preflight", settings.preflight_scheduling)]) | shared,
    )


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


def pod_extras(owner: Owner, settings: Settings) -> PodExtras:
    """Return what else pods carry; the platform's own word goes before what is inherited from the owner."""
    template, prefixes = settings.pod_template, tuple(settings.inherit_label_prefixes)
    return PodExtras(
        labels=_inherited(owner.labels, prefixes) | template.labels,
        annotations=_inherited(owner.annotations, prefixes) | template.annotations,
        env=template.env,
        shm_size=template.shm_size,
        security=template.security,
        ca_bundle=template.ca_bundle,
    )


def together(pod: PodExtras, resources: ResourcesSpec, owner: Owner, settings: Settings) -> PodExtras:
    """Return what pods carry that train on several devices; what they carry as it is, where there is but one.

    Kueue's topology is of several pods. GPUs of one pod hand tensors to each other through /dev/shm.
    """
    if resources.devices == 1:
        return pod
    platform = settings.pod_template.distributed
    shm = parse_quantity(pod.shm_size) + resources.gpus * _SHM_OF_A_GPU
    nearness = TOPOLOGY_ANNOTATIONS if resources.nodes > 1 else ()
    return replace(
        pod,
        annotations={
            **pod.annotations,
            **{name: owner.annotations[name] for name in nearness if owner.annotations.get(name)},
            **platform.annotations,
        },
        env={**pod.env, **platform.env},
        resources=platform.resources,
        shm_size=_in_gibibytes(int(shm)) if resources.gpus > 1 else pod.shm_size,
    )


def _in_gibibytes(size: int) -> str:
    return str(size) if size % 2**30 else f"{size // 2**30}Gi"


def _inherited(values: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return what begins with a prefix, but for what speaks of the owner alone, as our own does, or kubectl's."""
    return {
        name: text
        for name, text in values.items()
        if name.startswith(prefixes) and not name.startswith(_OF_OTHERS) and name not in _OF_JOBS
    }
