"""Provide every metric of the operator; no label has the name of an object.

The metrics of tenants follow from changes of status: `observe` is called after each write of a status. A status has
the history of attempts, so nothing is counted twice, and a restart only resets the counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from tunery_api.adaptermerge import MergeMethod
from tunery_api.findings import FindingType
from tunery_api.kinds import Kind
from tunery_api.methods import Method
from tunery_api.reasons import FailureReason
from tunery_api.status import FINAL_PHASES, ConditionType, Phase
from tunery_operator.observed.attempt import ENDS_WITHOUT_FAULT, cause_of
from tunery_operator.observed.metadata import parse_time

_LATENCY: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WAITS: Final = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600, 86_400, 3 * 86_400)

# The operator itself

API_REQUESTS: Final = Counter(
    "tunery_api_requests",
    "Requests to the API server, by verb, resource and HTTP status (0: no answer).",
    ["verb", "resource", "code"],
)
WATCH_ERRORS: Final = Counter(
    "tunery_watch_errors",
    "Lists and watches that failed, by resource and by HTTP status or kind of fault.",
    ["resource", "code"],
)
WATCH_RELISTS: Final = Counter(
    "tunery_watch_relists", "Complete lists after the first, because a watch could not continue.", ["resource"]
)
RECONCILE_SECONDS: Final = Histogram(
    "tunery_reconcile_duration_seconds", "Time of one reconcile.", ["kind"], buckets=_LATENCY
)
RECONCILE_ERRORS: Final = Counter("tunery_reconcile_errors", "Reconciles that ended with an error.", ["kind"])
RECONCILE_CONFLICTS: Final = Counter(
    "tunery_reconcile_conflicts", "Reconciles whose object had changed meanwhile; they are repeated.", ["kind"]
)
SUGGEST_SECONDS: Final = Histogram(
    "tunery_suggest_seconds", "Time until a sampler chose the next trials of a sweep.", buckets=_LATENCY
)
SUGGEST_ERRORS: Final = Counter("tunery_suggest_errors", "Samplers that failed to choose the next trials.")
QUEUE_WAIT: Final = Histogram(
    "tunery_work_queue_wait_seconds",
    "Time that a key waited for its reconcile, by priority.",
    ["priority"],
    buckets=_LATENCY,
)
EVENTS_DROPPED: Final = Counter("tunery_events_dropped", "Events that were not posted, by cause.", ["cause"])
PROGRESS_POSTS: Final = Counter("tunery_progress_posts", "Progress reports, by HTTP status.", ["code"])
PROGRESS_CONNECTIONS: Final = Gauge("tunery_progress_connections", "Open connections to the progress endpoint.")
PROGRESS_REFUSED: Final = Counter(
    "tunery_progress_connections_refused", "Connections to the progress endpoint that were closed, by cause.", ["cause"]
)
CERTIFICATE_EXPIRY: Final = Gauge(
    "tunery_certificate_expiry_timestamp_seconds",
    "When a certificate of the progress endpoint ends, in seconds since 1970.",
    ["certificate"],
)
LEADER: Final = Gauge("tunery_leader", "1 if this replica reconciles, 0 if it is on standby.")
INFO: Final = Info("tunery", "The version of this operator.")
INFO.info({"version": version("tunery-operator")})

# By tenant

JOBS_FINISHED: Final = Counter(
    "tunery_jobs_finished", "Objects that ended, by outcome and reason.", ["kind", "namespace", "outcome", "reason"]
)
ATTEMPTS: Final = Counter("tunery_attempts", "Attempts that ended, by reason.", ["kind", "namespace", "reason"])
GPU_SECONDS: Final = Counter(
    "tunery_gpu_seconds",
    "Seconds that ended attempts held GPUs, times the GPUs.",
    ["namespace", "gpu_resource", "queue"],
)
QUEUE_SECONDS: Final = Histogram(
    "tunery_queue_wait_seconds",
    "Time that an object which might have run waited until its queue admitted it.",
    ["namespace", "queue"],
    buckets=_WAITS,
)
FIRST_STEP_SECONDS: Final = Histogram(
    "tunery_time_to_first_step_seconds",
    "Time from the moment at which training might start to its first step: scheduling, image, model and data.",
    ["namespace"],
    buckets=_WAITS,
)
RUN_SECONDS: Final = Histogram(
    "tunery_run_duration_seconds",
    "Seconds that the pods of an object that succeeded ran in all.",
    ["kind", "method"],
    buckets=_WAITS,
)
PREFLIGHT_FAILURES: Final = Counter(
    "tunery_preflight_failures", "LoRAJobs that ended in preflight, before any GPU.", ["namespace", "reason"]
)

FINDINGS: Final = Counter("tunery_findings", "Findings of runs, once for each type and run.", ["namespace", "type"])

# The creation time of each series would double the output.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped

_REASONS: Final = frozenset({reason.value for reason in FailureReason} | ENDS_WITHOUT_FAULT)
_FINDING_TYPES: Final = frozenset(kind.value for kind in FindingType)
_METHODS: Final = frozenset({m.value for m in Method} | {m.value for m in MergeMethod})
_OTHER: Final = "Other"
_CHOSEN_FREELY: Final[Mapping[MetricWrapperBase, tuple[int, ...]]] = {GPU_SECONDS: (1, 2), QUEUE_SECONDS: (1,)}
"""Which labels of which metric a tenant's manifest decides."""
_MAX_VALUES: Final = 100
"""Values of such a label in one namespace; what comes after them counts as Other."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The inputs of the metrics of an object besides its status."""

    kind: str
    namespace: str
    created: str
    """metadata.creationTimestamp."""
    now: datetime
    gpu_resource: str = ""
    method: str = ""
    """The method that the spec names; the status's own comes first."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One step of a counter, or one value of a histogram."""

    metric: Counter | Histogram
    labels: tuple[str, ...]
    value: float = 1.0


class _Guard:
    """Limits how many values a label of tenants can have: each is a series until the process ends."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], set[str]] = {}

    def bounded(self, observation: Observation) -> tuple[str, ...]:
        """Return the labels of an observation; the first of them is the namespace where others are chosen freely."""
        labels = list(observation.labels)
        for index in _CHOSEN_FREELY.get(observation.metric, ()):
            known = self._known.setdefault((labels[0], index), set())
            if labels[index] not in known and len(known) >= _MAX_VALUES:
                labels[index] = _OTHER
            else:
                known.add(labels[index])
        return tuple(labels)


_guard: Final = _Guard()


def observe(old: Mapping[str, Any], new: Mapping[str, Any], facts: Facts) -> None:
    """Count the changes of a status; call it once for each successful write."""
    for observation in changes(old, new, facts):
        labelled: MetricWrapperBase = observation.metric.labels(*_guard.bounded(observation))
        if isinstance(labelled, Histogram):
            labelled.observe(observation.value)
        elif isinstance(labelled, Counter):
            labelled.inc(observation.value)


def changes(old: Mapping[str, Any], new: Mapping[str, Any], facts: Facts) -> tuple[Observation, ...]:
    """Return the observations of the change from one status of an object to the next."""
    return (
        *_ended_attempts(old, new, facts),
        *_gpu_seconds(old, new, facts),
        *_admission(old, new, facts),
        *_first_step(old, new, facts),
        *_end(old, new, facts),
        *_findings(old, new, facts),
    )


def _ended_attempts(old: Mapping[str, Any], new: Mapping[str, Any], facts: Facts) -> Iterator[Observation]:
    before = _ended(old)
    for attempt, reason in _ended(new).items():
        if attempt not in before:
            yield Observation(ATTEMPTS, (facts.kind, facts.namespace, _reason(reason)))


def _ended(status: Mapping[str, Any]) -> dict[Any, str | None]:
    """Return the reason of each attempt that has ended with all its pods: by the pod, or by the number of several."""
    pods: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in status.get("attemptHistory") or ():
        pods.setdefault(entry.get("attempt", entry["uid"]), []).append(entry)
    return {
        attempt: cause_of(entries)
        for attempt, entries in pods.items()
        if all(entry.get("endTime") for entry in entries)
    }


def _findings(old: Mapping[str, Any], new: Mapping[str, Any], facts: Facts) -> Iterator[Observation]:
    before = {finding["type"] for finding in old.get("findings") or ()}
    for kind in dict.fromkeys(finding["type"] for finding in new.get("findings") or ()):
        if kind not in before:
            yield Observation(FINDINGS, (facts.namespace, kind if kind in _FINDING_TYPES else _OTHER))


def _gpu_seconds(old: Mapping[str, Any], new: Mapping[str, Any], facts: Facts) -> Iterator[Observation]:
    if facts.kind == Kind.LORASWEEP.value:
        return  # its trials are counted themselves
    seconds = int(new.get("gpuSeconds") or 0) - int(old.get("gpuSeconds") or 0)
    if seconds > 0:
        labels = (facts.namespace, facts.gpu_resource, str(new.get("queue") or ""))
        yield Observation(GPU_SECONDS, labels, seconds)


def _admission(old: Mapping[str, Any], new: Mapping[str, Any], facts: Facts) -> Iterator[Observation]:
    quota = ConditionType.QUOTA_RESERVED
    admitted = _since(new, quota, "True")
    queue = new.get("queue")
    if admitted is None or _since(old, quota, "True") is not None or not queue:
        return
    began = _latest(
        facts.created,
        _since(new, ConditionType.PREFLIGHT, "True"),
        _since(old, quota, "False"),
        _since(new, ConditionType.SUSPENDED, "False"),
    )
    if began is not None:
        yield Observation(QUEUE_SECONDS, (facts.namespace, queue), max(0.0, (admitted - began).total_seconds()))


def _first_step(old: Mapping[str, Any], new: Mapping[str, Any], facts: Facts) -> Iterator[Observation]:
    if _step(old) > 0 or _step(new) == 0:
        return
    began = _latest(
        facts.created,
        _since(new, ConditionType.PREFLIGHT, "True"),
        _since(new, ConditionType.QUOTA_RESERVED, "True"),
        _since(new, ConditionType.SUSPENDED, "False"),
    )
    if began is not None:
        yield Observation(FIRST_STEP_SECONDS, (facts.namespace,), max(0.0, (facts.now - began).total_seconds()))


def _end(old: Mapping[str, Any], new: Mapping[str, Any], facts: Facts) -> Iterator[Observation]:
    phase = new.get("phase")
    if phase not in FINAL_PHASES or old.get("phase") in FINAL_PHASES:
        return
    if phase == Phase.SUCCEEDED.value:
        yield Observation(JOBS_FINISHED, (facts.kind, facts.namespace, phase, phase))
        method = (new.get("resolved") or {}).get("method") or facts.method
        labels = (facts.kind, method if method in _METHODS else _OTHER)
        if "runSeconds" in new:  # spec.preflight Only has run nothing
            yield Observation(RUN_SECONDS, labels, int(new["runSeconds"] or 0))
        return
    if phase == Phase.STOPPED.value:
        yield Observation(JOBS_FINISHED, (facts.kind, facts.namespace, phase, phase))
        return
    reason = _reason((new.get("failure") or {}).get("reason"))
    yield Observation(JOBS_FINISHED, (facts.kind, facts.namespace, phase, reason))
    if _since(new, ConditionType.PREFLIGHT, "False") is not None:
        yield Observation(PREFLIGHT_FAILURES, (facts.namespace, reason))


def _reason(reason: Any) -> str:
    """Return a known reason or Other; a pod may write any text into its termination message."""
    return reason if reason in _REASONS else _OTHER


def _step(status: Mapping[str, Any]) -> int:
    return int((status.get("progress") or {}).get("step") or 0)


def _since(status: Mapping[str, Any], condition: ConditionType, value: str) -> datetime | None:
    """Return since when a condition has this value; None if it has another, or is not set."""
    for found in status.get("conditions") or ():
        if found["type"] == condition.value and found["status"] == value:
            return parse_time(found.get("lastTransitionTime"))
    return None


def _latest(created: str, *times: datetime | None) -> datetime | None:
    known = [time for time in (parse_time(created), *times) if time is not None]
    return max(known, default=None)


# Gauges that are read at each scrape


@dataclass(frozen=True, slots=True)
class State:
    """The sources of the gauges."""

    objects: Callable[[], Mapping[tuple[str, str, str], int]]
    """Objects by kind, namespace and phase."""
    watch_ages: Callable[[], Mapping[str, float]]
    """Seconds since the last response of each watch, by resource."""
    queue_depth: Callable[[], Mapping[str, int]]
    """Keys that wait, by priority."""
    queue_oldest: Callable[[], float]
    """Seconds that the oldest of them has waited."""


class StateCollector(Collector):
    """The gauges that are read at each scrape: objects, watches, queue."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges."""
        objects = GaugeMetricFamily("tunery_objects", "Objects by phase.", labels=["kind", "namespace", "phase"])
        for labels, count in self._state.objects().items():
            objects.add_metric(list(labels), count)
        yield objects
        ages = GaugeMetricFamily(
            "tunery_watch_age_seconds", "Seconds since the last response of a watch.", labels=["resource"]
        )
        for resource, age in self._state.watch_ages().items():
            ages.add_metric([resource], age)
        yield ages
        depth = GaugeMetricFamily("tunery_work_queue_depth", "Keys that wait for their reconcile.", labels=["priority"])
        for priority, count in self._state.queue_depth().items():
            depth.add_metric([priority], count)
        yield depth
        yield GaugeMetricFamily(
            "tunery_work_queue_oldest_seconds", "Seconds that the oldest key has waited.", self._state.queue_oldest()
        )


def expose(accept: str | None) -> tuple[bytes, str]:
    """Return all metrics and their content type: Prometheus's text format, or OpenMetrics where it is asked for."""
    encode, content_type = choose_encoder(accept or "")
    return encode(REGISTRY), content_type
