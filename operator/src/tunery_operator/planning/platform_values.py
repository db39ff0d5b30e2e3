"""List the values of Tunery's chart that a pod uses, so that a failure which may come from them can name them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from tunery_api.failures import Failure
from tunery_api.kinds import Kind
from tunery_api.reasons import FailureReason
from tunery_operator.config import Placement, Settings

CHART_VALUES: Final = "chartValues"
"""The fact of a failure that lists the values."""
_R = FailureReason
_PLACING: Final = ("nodeSelector", "tolerations", "priorityClassName", ".resources", "cache.claimName")
_POD: Final = (
    *("priorityClassName", "runtimeClassName", "nodeSelector", "tolerations", ".resources", "podLabels"),
    *("podAnnotations", ".env", "securityContext", "queueName"),
)
_SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    _R.UNSCHEDULABLE: _PLACING,
    _R.POD_REFUSED: _POD,
    _R.CREATE_REFUSED: _POD,
    _R.QUOTA_EXCEEDED: (".resources",),
    _R.IMAGE_PULL_FAILED: ("image", "pullSecrets"),
    _R.CONTAINER_REFUSED: ("image", ".env", "runtimeClassName", "securityContext"),
    _R.MOUNT_FAILED: ("caBundle.configMap", "cache.claimName"),
    _R.OUT_OF_MEMORY: (".resources",),
    _R.DISK_FULL: (".resources",),
}
"""The values that can cause a failure, by the end of their names."""


class PlatformValues(NamedTuple):
    """The names of the values, in the order of values.yaml."""

    work: tuple[str, ...] = ()
    """The values of pods that train, merge, send a batch, or serve."""
    checks: tuple[str, ...] = ()
    """The values of pods that check, report, or publish."""


NO_VALUES: Final = PlatformValues()


def platform_values(kind: Kind, spec: Mapping[str, Any], settings: Settings, gpus: int) -> PlatformValues:
    """Return the values that the plan of an object uses, without those that its manifest overrides."""
    scheduling, template = spec.get("scheduling") or {}, settings.trainer
    placed = [*_placement("trainer", template, scheduling)]
    placed += _placement("trainer.gpu", template.gpu, scheduling) if gpus else []
    shared = tuple(_shared(kind, spec, settings))
    checks = _placement("preflight", settings.preflight, {})
    return PlatformValues(
        (*shared, *placed),
        (*shared, "preflight.resources", *checks, *_placement("trainer", template, {})),
    )


def _shared(kind: Kind, spec: Mapping[str, Any], settings: Settings) -> Iterator[str]:
    template = settings.trainer
    if kind is Kind.ADAPTERSERVER:
        yield from ("serving.server.image", "serving.server.resources")
        if not (spec.get("engine") or {}).get("image"):
            yield "serving.engine.image"
    else:
        yield "serving.server.image" if kind is Kind.BATCHINFERENCE else "trainer.image"
    if settings.image.pull_secrets:
        yield "image.pullSecrets"
    for name, value in (
        ("podLabels", template.pod_labels),
        ("podAnnotations", template.pod_annotations),
        ("env", template.env),
        ("caBundle.configMap", template.ca_bundle.config_map),
    ):
        if value:
            yield f"trainer.{name}"
    yield "trainer.securityContext"
    if kind is Kind.LORAJOB and settings.cache.claim_name and not spec.get("cache"):
        yield "cache.claimName"


def _placement(name: str, layer: Placement, own: Mapping[str, Any]) -> Iterator[str]:
    """Yield the values of one block of the chart that place a pod; `own` is spec.scheduling, which goes first."""
    if set(layer.node_selector) - set(own.get("nodeSelector") or ()):
        yield f"{name}.nodeSelector"
    if layer.tolerations:
        yield f"{name}.tolerations"
    for field, value in (
        ("priorityClassName", layer.priority_class_name),
        ("runtimeClassName", layer.runtime_class_name),
    ):
        if value is not None and own.get(field) is None:
            yield f"{name}.{field}"


def with_platform_values(failure: Failure, values: tuple[str, ...]) -> Failure:
    """Return a failure with the values of the chart that it may come from."""
    suffixes = _SUFFIXES.get(str(failure.reason), ())
    found = [name for name in values if suffixes and name.endswith(suffixes)]
    if not found or CHART_VALUES in failure.facts:
        return failure
    return failure.model_copy(update={"facts": {**failure.facts, CHART_VALUES: ", ".join(found)}})
