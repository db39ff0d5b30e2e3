"""Provide the exceptions of the operator; `retry_after` is the delay until the retry."""

from __future__ import annotations


class OperatorError(Exception):
    """The base of all; `retry_after` is in seconds, None: the backoff of the queue decides."""

    retry_after: float | None = None


class NameTaken(OperatorError):
    """A foreign object has the name of a child; it is not changed."""

    def __init__(self, name: str, kind: str = "Job") -> None:
        self.name = name
        super().__init__(f"{kind} {name} exists and does not belong to this object")


class AwaitingDeletion(OperatorError):
    """A child of an earlier object or Job of the same name still exists; it is deleted automatically."""

    retry_after = 1.0


class PreflightsFull(OperatorError):
    """The platform allows no more preflights at a time."""


class SamplerBusy(OperatorError):
    """Optuna has been computing an answer, or those of other sweeps, for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__("waits for Optuna to choose the next trials; requests of other sweeps may be ahead of it")


class FieldContested(OperatorError):
    """Another controller keeps reverting a change of Tunery, which retries in `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class StaleObject(OperatorError):
    """The object changed after it was read."""

    retry_after = 0.0


class OwnerGone(OperatorError):
    """The object, or its namespace, is being deleted."""


class ApiFailure(OperatorError):
    """The API server returned an unexpected error; `status` is the HTTP status, 0 for no answer."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Rejected(OperatorError):
    """The API server rejects a child that was built from the spec: the spec must change.

    `fields` are the child's fields that it names, such as `spec.template.spec.tolerations[0]`.
    """

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        self.fields = fields
        super().__init__(message)
