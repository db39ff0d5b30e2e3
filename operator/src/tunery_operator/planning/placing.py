"""Where pods run and what they carry: what the manifest says, then what the platform says for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from tunery_api.fields import parse_quantity
from tunery_api.names import GROUP, TOPOLOGY_ANNOTATIONS
from tunery_api.placement import ResourcesSpec, SchedulingSpec, Toleration
from tunery_operator.config import Placement, Settings
from tunery_operator.observed.metadata import Owner
from tunery_operator.planning.types import PodExtras

_OF_OTHERS: Final = (f"{GROUP}/", "batch.kubernetes.io/", "kubectl.kubernetes.io/")
_SHM_OF_A_GPU: Final = 2**30
_OF_JOBS: Final = ("job-name", "controller-uid")
"""Labels that Kubernetes gives to the pods of a Job; it refuses a Job whose pods have another value of them."""


def work_scheduling(spec: SchedulingSpec, settings: Settings, gpus: int) -> SchedulingSpec:
    """Return where the pods that train or merge run."""
    template = settings.trainer
    return _placed(spec, template.gpu, template) if gpus else _placed(spec, template)


def check_scheduling(spec: SchedulingSpec, settings: Settings) -> SchedulingSpec:
    """Return where the pods without a GPU run that check and report.

    Of the manifest they take its account and what it tolerates: it selects nodes for the sake of their GPUs.
    """
    own = SchedulingSpec(service_account_name=spec.service_account_name, tolerations=spec.tolerations)
    return _placed(own, settings.preflight)


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


def pod_extras(owner: Owner, settings: Settings) -> PodExtras:
    """Return what else pods carry; the platform's own word goes before what is inherited from the owner."""
    template, prefixes = settings.trainer, settings.trainer.inherit_labels
    return PodExtras(
        labels=_inherited(owner.labels, prefixes) | template.pod_labels,
        annotations=_inherited(owner.annotations, prefixes) | template.pod_annotations,
        env=template.env,
        shm_size=template.shm_size,
        security=template.security_context,
        ca_bundle=template.ca_bundle,
    )


def together(pod: PodExtras, resources: ResourcesSpec, owner: Owner, settings: Settings) -> PodExtras:
    """Return what pods carry that train on several devices; what they carry as it is, where there is but one.

    Kueue's topology is of several pods. GPUs of one pod hand tensors to each other through /dev/shm.
    """
    if resources.devices == 1:
        return pod
    platform = settings.trainer.distributed
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
