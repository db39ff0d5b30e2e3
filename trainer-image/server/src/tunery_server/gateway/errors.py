"""Errors as OpenAI's clients read them."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tunery_api.reasons import FailureReason
from tunery_server.routes import RETRY_SECONDS, NotServed, Routes

INVALID: Final = "invalid_request_error"
FAILED: Final = "server_error"
MODEL_NOT_ALLOWED: Final = "model_not_allowed"


class Refusal(Exception):
    """A request that the gateway answers itself, with an error."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers: dict[str, str] = {}
        self.closes = False
        """The client's next request is to go over a new connection, which may lead to another replica."""

    def body(self) -> dict[str, object]:
        """Return the error as JSON has it."""
        kind = INVALID if self.status < 500 else FAILED
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        """Return the answer."""
        response = web.json_response(self.body(), status=self.status, headers=self.headers)
        if self.closes:
            response.force_close()
        return response


def unavailable(code: str, message: str, retry_after: int) -> Refusal:
    """Return the refusal of what may be asked again after `retry_after` seconds."""
    refusal = Refusal(503, message, code)
    refusal.headers["Retry-After"] = str(max(1, retry_after))
    return refusal


def engine_failed(message: str, code: str = FailureReason.ENGINE_FAILED) -> Refusal:
    """Return the refusal of what this replica's engine cannot answer now, and another's may."""
    refusal = unavailable(code, message, RETRY_SECONDS)
    refusal.closes = True
    return refusal


def look_whether_open(routes: Routes) -> None:
    """Raise Refusal while the rules of clients are not known: what a key may ask for would be a guess."""
    if routes.closed:
        raise engine_failed("This replica has just started, and does not know yet who may ask for what; ask again.")


def not_served(error: NotServed) -> Refusal:
    """Return the refusal of an adapter that is wanted and cannot answer now."""
    return unavailable(error.reason, f"{error.name} is not served now: {error.message}", error.retry_after)


def not_found() -> Refusal:
    """Return the refusal of a path, or of a method on it, that is not offered."""
    return Refusal(404, "There is nothing at this path, or not for this method.", "not_found")


def unknown_model(near: str | None) -> Refusal:
    """Return the refusal of a model; its name is not repeated. `near` is one that this client may have meant."""
    meant = f"did you mean {near}? " if near is not None else ""
    text = f"There is no such model; {meant}GET /v1/models lists those that can be asked."
    return Refusal(404, text, "model_not_found", "model")


def not_allowed() -> Refusal:
    """Return the refusal of a model that this client may not ask for, be there one or not."""
    return Refusal(
        403,
        "This API key may not ask for this model; GET /v1/models lists those that it may.",
        MODEL_NOT_ALLOWED,
        "model",
    )
