"""Define the labels, annotations, paths and child names that operator, trainer, chart and tests share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

GROUP: Final = "tunery.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "tunery"
KIND_LABEL: Final = "tunery.dev/kind"
"""`lorajob`, `adaptermerge` or `adapterserver`, on every child."""
OWNER_LABEL: Final = "tunery.dev/owner"
"""The owner's name, shortened like a child's name if it is too long for a label value."""
OWNER_UID_LABEL: Final = "tunery.dev/owner-uid"
"""The owner's UID, on pods: a pod may outlive its Job, and the name may be reused by another object."""
ROLE_LABEL: Final = "tunery.dev/role"
"""On Jobs and pods: `preflight`, `train`, `merge`, `publish-best`, `batch`, `report`, `publish`, `fetch`; on servers
`serve`."""
DONE_LABEL: Final = "tunery.dev/done"
"""`true` on a Job whose result is in the status: the operator no longer watches it."""
SUSPENDED_BY_ANNOTATION: Final = "tunery.dev/suspended-by"
"""`spec` on a Job that the operator suspended because of `spec.suspend`, not for another reason such as Kueue."""
SETTINGS_ANNOTATION: Final = "tunery.dev/settings"
"""Digest of the owner's mutable settings that a Job was built from."""
PLAN_ANNOTATION: Final = "tunery.dev/plan"
"""Digest of the plan that a server's Deployment, or the pods of a Job, were built from. A changed plan is rolled out,
or applied before a pod runs."""
RETRY_ANNOTATION: Final = "tunery.dev/retry"
"""Any new value restarts a failed object, with the same UID and from its checkpoints."""
FETCH_ANNOTATION: Final = "tunery.dev/fetch"
"""Requests a pod that serves the results of an object: `<SHA-256 of a token>/<expiry>`, see tunery_api.fetching."""
FETCH_PORT: Final = 8070
"""The port of that pod, on 127.0.0.1 only: clients reach it with a port-forward."""
SWEEP_LABEL: Final = "tunery.dev/sweep"
"""The name of the LoRASweep, as a label value, on its trials."""
TRIAL_LABEL: Final = "tunery.dev/trial"
"""The number of a trial, such as 004, on its LoRAJob."""
ORIGIN_ANNOTATION: Final = "tunery.dev/origin"
"""The sampler or configuration that proposed the settings of a trial."""
SWEEP_OUTPUT_ANNOTATION: Final = "tunery.dev/sweep-output"
"""The URI of the result of the sweep, on the trial whose preflight checks whether it can be published there."""
CHECKPOINTS_PREFIX: Final = "tunery-checkpoints"
"""The folder of a bucket for all checkpoints, so that one lifecycle rule covers them."""
REPORTS_PREFIX: Final = "tunery-reports"
"""The folder of a bucket for the data reports of preflights. Reports of jobs that never succeed stay there."""
_TRIALS: Final = "trials"
"""The suffix of the sweep's output URI for its trials."""
DATA_REPORT_JSON: Final = "data-report.json"
DATA_REPORT_TEXT: Final = "data-report.md"
"""The data report of preflight, for programs and for people; also published with an adapter."""
CACHE_FOLDER: Final = "tunery-cache"
"""The folder of a PersistentVolumeClaim with the whole cache: the volume may have other files."""
_CONTAINER: Final = "trainer"
_CONTAINERS: Final[Mapping[str, str]] = {"batchinference": "batch"}
"""Kinds that don't run the trainer image."""

KUEUE_LABELS: Final = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")
"""Copied from the owner to the train Job."""

FIELD_MANAGER: Final = "tunery"
PROGRESS_AUDIENCE: Final = "tunery-progress"
"""Audience of the projected token for progress reports; the API server rejects such a token."""

NODES_ENV: Final = "TUNERY_NODES"
MASTER_ENV: Final = "TUNERY_MASTER"
"""The number of pods that train together, and the host name of the first. A pod's index is JOB_COMPLETION_INDEX."""
NODES_PORTS: Final = (29500, 29501)
"""Ports of the first pod: for torch.distributed, and for messages between the pods."""
TOPOLOGY_ANNOTATIONS: Final = (
    "kueue.x-k8s.io/podset-required-topology",
    "kueue.x-k8s.io/podset-preferred-topology",
    "kueue.x-k8s.io/podset-unconstrained-topology",
)
"""Kueue's topology requests: copied from the owner to the pods that train together."""
CA_BUNDLE_ENV: Final = "TUNERY_CA_BUNDLE"
"""The path of the CA bundle that the platform mounts."""
PROGRESS_URL_ENV: Final = "KUBEFLOW_TRAINER_SERVER_URL"
PROGRESS_CA_ENV: Final = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
PROGRESS_TOKEN_ENV: Final = "KUBEFLOW_TRAINER_SERVER_TOKEN"
"""The variables of transformers' KubeflowCallback: URL of the endpoint, paths of the CA file and the token file."""
PROGRESS_EVERY_ENV: Final = "TUNERY_PROGRESS_EVERY"
"""Seconds after which a pod repeats its last report: the operator can then tell a long step from a lost connection."""
PROGRESS_EVERY_SECONDS: Final = 30
METRICS: Final[Mapping[str, str]] = {
    "loss": "loss",
    "eval_loss": "evalLoss",
    "base_eval_loss": "baseEvalLoss",
    "reward_accuracy": "rewardAccuracy",
    "reward_margin": "rewardMargin",
    "eval_reward_accuracy": "evalRewardAccuracy",
    "eval_reward_margin": "evalRewardMargin",
    "learning_rate": "learningRate",
    "grad_norm": "gradNorm",
}
"""The metrics that a run reports, each with its field of status.metrics."""

RUN_ANNOTATION: Final = "tunery.dev/run"
"""The RunSpec of a pod as JSON, mounted as a file."""
PROGRESS_CA_ANNOTATION: Final = "tunery.dev/progress-ca"
"""The certificate authority that the pod trusts at the progress endpoint, as PEM."""
RUN_FILE: Final = "run.json"
RUN_DIR: Final = "/etc/tunery"
SECRETS_DIR: Final = "/var/run/secrets/tunery"
VOLUMES_DIR: Final = "/mnt/tunery"
WORK_DIR: Final = "/work"
TERMINATION_PATH: Final = "/dev/termination-log"
TERMINATION_LIMIT: Final = 4096
"""The most bytes of a termination message in Kubernetes."""

TRAIN_GRACE_SECONDS: Final = 120
"""The termination grace period of a training pod: enough to finish a step and save a checkpoint."""
BATCH_GRACE_SECONDS: Final = 60
"""The termination grace period of a BatchInference's pod: enough to finish and store open requests."""


HOST_NAME: Final = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
LONGEST_HOST_NAME: Final = 48
"""The pattern and the maximum length of a name that becomes part of a Service's name."""
MAX_JOB_NAME: Final = 63
"""The maximum length of a Job's name, which is a label value of its pods."""


def sibling_uri(uri: str, suffix: str) -> str:
    """Return `<uri>-<suffix>`, or the folder `suffix` if `uri` is a whole bucket."""
    base = uri.rstrip("/")
    return f"{base}-{suffix}" if "/" in base.partition("://")[2] else f"{base}/{suffix}"


def folder_in_bucket(output_uri: str, prefix: str, namespace: str, name: str, uid: str) -> str:
    """Return the folder of one object below a prefix that all objects have in the output's bucket."""
    scheme, _, rest = output_uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/{prefix}/{namespace}/{name}-{uid}"


def trials_uri(output_uri: str, uid: str) -> str:
    """Return the URI below which only the trials of one sweep publish, each in a folder."""
    return f"{sibling_uri(output_uri, _TRIALS)}/{uid}"


def container_name(kind: str) -> str:
    """Return the name of the main container in the pods of a kind's Jobs; `kind` is a value of KIND_LABEL.

    A pod may have injected containers too. Kubernetes names the container in events.
    """
    return _CONTAINERS.get(kind, _CONTAINER)


def adapter_purpose(index: int) -> str:
    """Return the purpose, in RunSpec.secrets and RunSpec.volumes, of the adapter at `index` of a merge."""
    return f"adapter-{index}"


def child_name(owner: str, suffix: str, pods: int = 1) -> str:
    """Return the deterministic name of a child: `<owner>-<suffix>`, shortened with a hash beyond 63 characters.

    In a Job with several pods, host names are this name with an index: it has no dot and leaves room for the index.
    """
    plain, most = (owner, MAX_JOB_NAME) if pods == 1 else (owner.replace(".", "-"), MAX_JOB_NAME - len(f"-{pods - 1}"))
    name = f"{plain}-{suffix}"
    if len(name) <= most and plain == owner:
        return name
    digest = hashlib.sha256(owner.encode()).hexdigest()[:10]
    head = plain[: most - len(suffix) - len(digest) - 2].rstrip("-.")
    return f"{head}-{digest}-{suffix}"


def nodes_service(uid: str) -> str:
    """Return the name of the headless Service of one object's pods; it is a valid host name."""
    return f"{MANAGED_BY}-{uid[:8]}"


def label_value(name: str) -> str:
    """Return `name` as a label value: itself, or shortened with a hash beyond 63 characters."""
    if len(name) <= MAX_JOB_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{name[: MAX_JOB_NAME - len(digest) - 1].rstrip('-.')}-{digest}"
