"""Define the contract between the operator and the replicas of an AdapterServer, and why adapters can't be served."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from pydantic import Field

from tunery_api.adapterserver import ENGINE_RANKS, Alias
from tunery_api.fields import OpenModel
from tunery_api.inputs import ModelSpec
from tunery_api.methods import Method
from tunery_api.reasons import FailureReason
from tunery_api.remedies import INTO_MODEL, Remedy, edit, retry
from tunery_api.runspec import DiskLimit, MountedSecret, RunIdentity
from tunery_api.serverstatus import AdapterState
from tunery_api.status import Reason

SERVE_FILE: Final = "serve.json"
SERVE_DIR: Final = "/etc/tunery"
DESIRED_FILE: Final = "adapters.json"
DESIRED_DIR: Final = "/etc/tunery-adapters"
MODEL_DIR: Final = "/model"
ADAPTERS_DIR: Final = "/adapters"
SOCKET_DIR: Final = "/run/tunery"
ENGINE_SOCKET: Final = f"{SOCKET_DIR}/engine.sock"
GATEWAY_PORT: Final = 8000
OLDEST_ENGINE: Final = "0.32.0"
"""The oldest supported vLLM: older prefix caches may answer with an adapter's previous content."""
SILENT_SECONDS: Final = 30.0
"""Seconds without a report after which the state of a replica is unknown."""
LAST_USED_SECONDS: Final = 600
"""The resolution of an adapter's last-used time: a finer one would change the status with each request."""
NO_KEYS: Final = ""
"""The Secret name that stands for a server without API keys."""
VERSION_DIGITS: Final = 12
"""The digits of a manifest's SHA-256 after the @ of an engine name."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def engine_name(name: str, manifest_sha256: str) -> str:
    """Return the engine's name of one version of an adapter, such as support-bot@3fa9c1d20b7e.

    Each version has its own name: an engine that reloads a name may answer from a cache of the old content.
    """
    return f"{name}@{manifest_sha256[:VERSION_DIGITS]}"


class ServeSpec(OpenModel):
    """The content of serve.json: the settings of a replica. A change needs a new replica; nothing in it is secret."""

    identity: RunIdentity
    model: ModelSpec
    served_name: str
    """The name of the base model."""
    model_secret: MountedSecret | None = None
    model_mount: str | None = None
    """The mount point of the PersistentVolumeClaim of a pvc:// model."""
    adapter_secret: MountedSecret | None = None
    api_keys: MountedSecret | None = None
    """A folder with one file per client, named after it. None: no API key is required."""
    max_rank: int = 64
    max_adapters_in_batch: int = 8
    max_loaded_adapters: int = 32
    disk: DiskLimit | None = None
    """The disk limit for the model and the adapters."""
    port: int = GATEWAY_PORT
    model_dir: str = MODEL_DIR
    adapters_dir: str = ADAPTERS_DIR
    engine_socket: str = ENGINE_SOCKET
    desired_file: str = f"{DESIRED_DIR}/{DESIRED_FILE}"

    @property
    def api_keys_secret(self) -> str:
        """The name of the Secret with the API keys, or NO_KEYS."""
        return self.api_keys.name if self.api_keys is not None else NO_KEYS


class DesiredAdapter(OpenModel):
    """One adapter that should be served."""

    name: str
    """The model name in requests."""
    uri: str
    manifest_sha256: Sha256 | None = None
    """The SHA-256 to serve, from a status or pinned. None: what the URI has, which the replica checks regularly."""
    source: str = "uri"
    """LoRAJob/name, AdapterMerge/name or uri; for messages."""
    keep_loaded: bool = False
    """The engine never unloads it."""


class HeldAdapter(OpenModel):
    """A desired name that can't be served yet. Replicas answer its requests with the reason."""

    name: str
    reason: Reason
    message: Annotated[str, Field(max_length=256)]


class ClientRules(OpenModel):
    """The clients that may request only some models, for the API keys of one Secret."""

    api_keys: Annotated[str, Field(min_length=1)]
    """The name of the Secret."""
    clients: dict[str, list[str]]


class Desired(OpenModel):
    """The content of adapters.json: what every replica should serve.

    A replica uses the highest revision it has read.
    """

    revision: int = 0
    """The operator increments it with each change."""
    adapters: list[DesiredAdapter] = Field(default_factory=list)
    held: list[HeldAdapter] = Field(default_factory=list)
    """Names that wait for an object or that the operator rejects; none of them is in `adapters`."""
    aliases: list[Alias] = Field(default_factory=list)
    clients: dict[str, list[str]] = Field(default_factory=dict)
    """The models that each restricted client may request, by client name."""
    api_keys: str | None = None
    """The Secret of the API keys that `clients` is for, or NO_KEYS. None: not reported."""
    before: list[ClientRules] = Field(default_factory=list)
    """The rules of previous Secrets, latest first: for replicas that still mount one of those."""

    def clients_of(self, secret: str) -> dict[str, list[str]] | None:
        """Return the restricted clients of this Secret's API keys and their models; None if they are unknown."""
        if secret == NO_KEYS:
            return {}
        if self.api_keys in (None, secret):
            return self.clients
        return next((rules.clients for rules in self.before if rules.api_keys == secret), None)


class ReportedAdapter(OpenModel):
    """The state of one adapter on one replica."""

    name: Annotated[str, Field(max_length=253)]
    state: AdapterState
    manifest_sha256: Sha256 | None = None
    """SHA-256 of the served version. None: nothing is served."""
    wanted_sha256: Sha256 | None = None
    """SHA-256 of the desired version, while another one is served."""
    rank: int | None = Field(None, ge=0)
    size_bytes: int | None = Field(None, ge=0)
    last_used: float | None = None
    """When this replica last got a request for it, in seconds since 1970."""
    reason: Reason | None = None
    message: Annotated[str, Field(max_length=1024)] | None = None
    hint: Annotated[str, Field(max_length=1024)] | None = None


class Remark(OpenModel):
    """A problem to fix that doesn't block the replica."""

    reason: Reason
    message: Annotated[str, Field(max_length=1024)]
    hint: Annotated[str, Field(max_length=1024)] | None = None


class ReplicaState(OpenModel):
    """The state that one replica reports of itself."""

    revision: int = Field(0, ge=0)
    """The revision of the latest Desired that the replica has read."""
    engine_ready: bool = False
    engine_version: Annotated[str, Field(max_length=64)] | None = None
    engine_restarts: int = Field(0, ge=0)
    """How often the replica has seen the engine exit."""
    reason: Reason | None = None
    """What blocks the whole replica."""
    message: Annotated[str, Field(max_length=1024)] | None = None
    hint: Annotated[str, Field(max_length=1024)] | None = None
    remark: Remark | None = None
    """A problem that doesn't block the replica. None: there is none."""
    adapters: list[ReportedAdapter] = Field(default_factory=list, max_length=4096)
    api_keys: Annotated[str, Field(max_length=253)] | None = None
    """The Secret of the API keys that the replica requires, or NO_KEYS. None: not reported."""


class ReplicaReport(OpenModel):
    """The body of a replica's report. Replicas send it to the progress endpoint that training pods use."""

    replica_status: ReplicaState


class ReplicaReply(OpenModel):
    """The response to a replica's report."""

    desired: Desired | None = None
    """None: the reported revision is the latest."""
    interval_seconds: float = 5.0
    """Seconds until the next report, unless something changes before."""


class Unservable(NamedTuple):
    """Why an adapter cannot be served, and the remedy."""

    reason: FailureReason
    message: str
    remedy: Remedy


_FEWER_KEPT: Final = edit(
    "Raise engine.maxLoadedAdapters of the server, or remove keepLoaded from some of its adapters",
    "engine.maxLoadedAdapters",
)
LINEAR: Final = retry("Convert it to a LoRA with an AdapterMerge of it alone and method: Linear, and serve that")
PEFT_ONLY: Final = retry("Train a LoRA instead: only PEFT runs prompt and prefix tuning")
_REMEDIES: Final = {
    Method.DORA.value: INTO_MODEL,
    Method.QDORA.value: INTO_MODEL,
    Method.IA3.value: INTO_MODEL,
    Method.ADALORA.value: LINEAR,
    Method.PREFIX_TUNING.value: PEFT_ONLY,
    Method.PROMPT_TUNING.value: PEFT_ONLY,
}


def method_problem(method: str | None) -> Unservable | None:
    """Return why adapters of this method can't be served; None if they can, or the method is unknown."""
    if method not in _REMEDIES:
        return None
    return Unservable(
        FailureReason.ADAPTER_UNSUPPORTED,
        f"its method is {method}; only LoRA is served",
        _REMEDIES[method],
    )


def rank_problem(rank: int | None, max_rank: int, slot_bytes: int | None = None) -> Unservable | None:
    """Return why an adapter of this rank can't be served; None if it can, or its rank is unknown.

    `slot_bytes` is the memory that one slot takes for each rank, if it is known.
    """
    if rank is None or rank <= max_rank:
        return None
    message = f"its rank is {rank}, engine.maxRank is {max_rank}"
    enough = next((known for known in ENGINE_RANKS if known >= rank), None)
    if enough is None:
        text = f"{message}, and none above {ENGINE_RANKS[-1]} is served"
        return Unservable(FailureReason.RANK_TOO_HIGH, text, INTO_MODEL)
    memory = f"then takes {slot_bytes * enough / 2**20:,.0f} MiB" if slot_bytes else "takes more memory"
    raised = f"Raise engine.maxRank to {enough} (replicas are replaced one by one, and each slot {memory})"
    return Unservable(
        FailureReason.RANK_TOO_HIGH, message, edit(f"{raised}, or train an adapter of a lower rank", "engine.maxRank")
    )


def base_problem(served_name: str | None, base: str) -> Unservable | None:
    """Return why an adapter of another base model can't be served; None if the models match or its own is unknown."""
    if served_name is None or served_name == base:
        return None
    return Unservable(
        FailureReason.BASE_MISMATCH,
        f"it was trained on {served_name}, and the model of this server is {base}",
        retry(
            f"Serve it from an AdapterServer of {served_name}; if {base} is the same model, recreate this server with "
            f"model.servedName: {served_name}"
        ),
    )


def too_many_kept_loaded(max_loaded: int) -> Unservable:
    """Return the problem of an adapter with keepLoaded that is one more than the engine can hold."""
    return Unservable(
        FailureReason.TOO_MANY_ADAPTERS,
        f"engine.maxLoadedAdapters is {max_loaded}, and as many others before it have keepLoaded",
        _FEWER_KEPT,
    )


def no_slot_left(max_loaded: int) -> Unservable:
    """Return the problem of an adapter that can't be loaded because adapters with keepLoaded take every slot."""
    return Unservable(
        FailureReason.TOO_MANY_ADAPTERS,
        f"engine.maxLoadedAdapters is {max_loaded}, and adapters with keepLoaded take all of it",
        _FEWER_KEPT,
    )
