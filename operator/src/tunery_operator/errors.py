"""What can go wrong in the operator itself: each error says whether trying again helps, and when."""

from __future__ import annotations


class OperatorError(Exception):
    """The root of the tree; `retry_after` is in seconds, None leaves the delay to the queue's backoff."""

    retry_after: float | None = None


class NameTaken(OperatorError):
    """A child's name is borne by an object that is not ours; it stays untouched."""

    def __init__(self, name: str, kind: str = "Job") -> None:
        self.name = name
        super().__init__(f"{kind} {name} exists and does not belong to this object")


class AwaitingDeletion(OperatorError):
    """What an earlier object or Job of the same name has left still exists; it goes by itself."""

    retry_after = 1.0


class PreflightsFull(OperatorError):
    """As many preflights run as the platform allows at a time."""


class SamplerBusy(OperatorError):
    """Optuna computes the answer to a question, or other questions are before it, since `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__("waits for Optuna to choose the next trials; requests of other sweeps may be ahead of it")


class FieldContested(OperatorError):
    """Another controller keeps undoing a change of ours: it is left alone for `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class StaleObject(OperatorError):
    """The object changed after it was read: read it again."""

    retry_after = 0.0


class OwnerGone(OperatorError):
    """The object, or its namespace, is being deleted: there is nothing left to do."""


class ApiFailure(OperatorError):
    """The API server answered with an error that nobody expected; `status` is the HTTP status, 0 for none."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Rejected(OperatorError):
    """The API server refuses a child that was built from the spec: the spec must change.

    `fields` are the child's fields that it names, such as `spec.template.spec.tolerations[0]`.
    """

    def __init__(self, message: str, fields: tuple[str, ...]) -> None:
        self.fields = fields
        super().__init__(message)
