"""Define the contract between operator and replicas of an AdapterServer, and why an adapter cannot be served."""

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
"""The oldest vLLM that was tried: before, a prefix cache may answer with an adapter's earlier content."""
SILENT_SECONDS: Final = 30.0
"""After so long without a report nobody can say what a replica serves."""
LAST_USED_SECONDS: Final = 600
"""So coarse is what a status says of when an adapter was last asked for: else every request would change it."""
NO_KEYS: Final = ""
"""Stands for the Secret of the API keys where no key is asked for."""
VERSION_DIGITS: Final = 12
"""Of a manifest's digest, behind the @ of an engine name."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def engine_name(name: str, manifest_sha256: str) -> str:
    """Return the name that one version of an adapter has in the engine, such as support-bot@3fa9c1d20b7e.

    Each version has its own: an engine that reloads a name may answer from what it kept of the old content.
    """
    return f"{name}@{manifest_sha256[:VERSION_DIGITS]}"


class ServeSpec(OpenModel):
    """serve.json: all that a replica needs to know and that a new replica is made for; nothing in it is secret."""

    identity: RunIdentity
    model: ModelSpec
    served_name: str
    """The name of the base model."""
    model_secret: MountedSecret | None = None
    model_mount: str | None = None
    """The folder that a claim of a pvc:// model is mounted at."""
    adapter_secret: MountedSecret | None = None
    api_keys: MountedSecret | None = None
    """A folder with one file for each client, its name that of the client; None: no key is asked for."""
    max_rank: int = 64
    max_adapters_in_batch: int = 8
    max_loaded_adapters: int = 32
    disk: DiskLimit | None = None
    """What model and adapters may take."""
    port: int = GATEWAY_PORT
    model_dir: str = MODEL_DIR
    adapters_dir: str = ADAPTERS_DIR
    engine_socket: str = ENGINE_SOCKET
    desired_file: str = f"{DESIRED_DIR}/{DESIRED_FILE}"

    @property
    def api_keys_secret(self) -> str:
        """The name of the Secret of the API keys; NO_KEYS: no key is asked for."""
        return self.api_keys.name if self.api_keys is not None else NO_KEYS


class DesiredAdapter(OpenModel):
    """One adapter that is to be served."""

    name: str
    """The name that requests give."""
    uri: str
    manifest_sha256: Sha256 | None = None
    """The content to serve: vouched for by a status, or pinned. None: what is published there, looked at again and
    again."""
    source: str = "uri"
    """LoRAJob/name, AdapterMerge/name or uri, for messages."""
    keep_loaded: bool = False
    """It never leaves the engine for lack of use."""


class HeldAdapter(OpenModel):
    """A name that is wanted and leads nowhere yet, so that whoever asks for it is told why."""

    name: str
    reason: Reason
    message: Annotated[str, Field(max_length=256)]


class ClientRules(OpenModel):
    """Which clients may ask for some models only, by the keys of one Secret."""

    api_keys: Annotated[str, Field(min_length=1)]
    """The name of the Secret."""
    clients: dict[str, list[str]]


class Desired(OpenModel):
    """adapters.json: what every replica is to serve. A replica takes the highest revision it has seen."""

    revision: int = 0
    """Raised by the operator with each change."""
    adapters: list[DesiredAdapter] = Field(default_factory=list)
    held: list[HeldAdapter] = Field(default_factory=list)
    """Names that wait for an object, or that the operator refuses; none of them is in `adapters`."""
    aliases: list[Alias] = Field(default_factory=list)
    clients: dict[str, list[str]] = Field(default_factory=dict)
    """Of clients that may ask for some models only: their names, and those of the models."""
    api_keys: str | None = None
    """The Secret of the API keys that `clients` are of, NO_KEYS where no key is asked for; None: it is not said."""
    before: list[ClientRules] = Field(default_factory=list)
    """The rules of other Secrets, newest first: for replicas that were made for one of those."""

    def clients_of(self, secret: str) -> dict[str, list[str]] | None:
        """Return the clients that may ask for some models only where this Secret's keys let in; None: nobody knows."""
        if secret == NO_KEYS:
            return {}
        if self.api_keys in (None, secret):
            return self.clients
        return next((rules.clients for rules in self.before if rules.api_keys == secret), None)


class ReportedAdapter(OpenModel):
    """One adapter, as one replica has it."""

    name: Annotated[str, Field(max_length=253)]
    state: AdapterState
    manifest_sha256: Sha256 | None = None
    """What is served; None: nothing."""
    wanted_sha256: Sha256 | None = None
    """What is to be served, while that is another."""
    rank: int | None = Field(None, ge=0)
    size_bytes: int | None = Field(None, ge=0)
    last_used: float | None = None
    """When it was last asked for on this replica, in seconds since 1970."""
    reason: Reason | None = None
    message: Annotated[str, Field(max_length=1024)] | None = None
    hint: Annotated[str, Field(max_length=1024)] | None = None


class Remark(OpenModel):
    """What somebody is to mend although it keeps the replica from nothing."""

    reason: Reason
    message: Annotated[str, Field(max_length=1024)]
    hint: Annotated[str, Field(max_length=1024)] | None = None


class ReplicaState(OpenModel):
    """What one replica says of itself."""

    revision: int = Field(0, ge=0)
    """Of the newest Desired that it has read."""
    engine_ready: bool = False
    engine_version: Annotated[str, Field(max_length=64)] | None = None
    engine_restarts: int = Field(0, ge=0)
    """How often it has seen the engine go away."""
    reason: Reason | None = None
    """What stands in the way of the replica as a whole."""
    message: Annotated[str, Field(max_length=1024)] | None = None
    hint: Annotated[str, Field(max_length=1024)] | None = None
    remark: Remark | None = None
    """None: there is nothing of the kind."""
    adapters: list[ReportedAdapter] = Field(default_factory=list, max_length=4096)
    api_keys: Annotated[str, Field(max_length=253)] | None = None
    """The Secret whose API keys it asks for, NO_KEYS where it asks for none; None: it does not say."""


class ReplicaReport(OpenModel):
    """The body of a replica's post; it goes to the endpoint that training pods report to."""

    replica_status: ReplicaState


class ReplicaReply(OpenModel):
    """The answer to a replica's post."""

    desired: Desired | None = None
    """None: the reported revision is the newest."""
    interval_seconds: float = 5.0
    """When to post again, unless something changes."""


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
    """Return why what a method trains cannot be served; None where it can, or where nothing is known of the method."""
    if method not in _REMEDIES:
        return None
    return Unservable(
        FailureReason.ADAPTER_UNSUPPORTED,
        f"its method is {method}; only LoRA is served",
        _REMEDIES[method],
    )


def rank_problem(rank: int | None, max_rank: int, slot_bytes: int | None = None) -> Unservable | None:
    """Return why an adapter of this rank cannot be served; None where it can, or where its rank is not known.

    `slot_bytes`, where they are known, are what one slot takes for each of its ranks.
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
    """Return why an adapter for another base model cannot be served; None where it can, or its base is not known."""
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
    """Return why an adapter cannot stay loaded that would be one more than the engine holds."""
    return Unservable(
        FailureReason.TOO_MANY_ADAPTERS,
        f"engine.maxLoadedAdapters is {max_loaded}, and as many others before it have keepLoaded",
        _FEWER_KEPT,
    )


def no_slot_left(max_loaded: int) -> Unservable:
    """Return why an adapter could never be loaded: others that stay loaded take all the room that there is."""
    return Unservable(
        FailureReason.TOO_MANY_ADAPTERS,
        f"engine.maxLoadedAdapters is {max_loaded}, and adapters with keepLoaded take all of it",
        _FEWER_KEPT,
    )
