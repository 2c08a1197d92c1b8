"""Errors as the server answers them: OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Mapping, Sequence
from typing import Any

from oppu.errors import ConfigError, OppuError, UnknownUserError


class ApiError(OppuError):
    """An error with its HTTP status and OpenAI's code for it."""

    def __init__(self, status: int, what: str, *, code: str | None = None, param: str | None = None, fix: str = ""):
        super().__init__(what, fix=fix)
        self.status = status
        self.code = code
        self.param = param


def model_not_found(model: str) -> ApiError:
    """404 for a model name that is neither the base's nor a known user's."""
    return ApiError(
        404, f"the model '{model}' does not exist", code="model_not_found", param="model", fix="see /v1/models"
    )


def as_api_error(error: OppuError) -> ApiError:
    """How an error of the lower parts is answered: bad settings are the client's, anything else is the server's.

    Paths of the server are not told.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnknownUserError):
        return ApiError(404, error.line(), code="model_not_found", param="model")
    if isinstance(error, ConfigError):
        return ApiError(400, error.line())
    return ApiError(500, error.what)


def body(error: ApiError) -> dict[str, Any]:
    """The answer's JSON."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.line(), "type": kind, "param": error.param, "code": error.code}}


def invalid_request(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """400 for a body that does not fit the schema; the first problem, as OpenAI does."""
    problem = problems[0]
    path = [str(part) for part in problem["loc"] if part not in ("body", "str", "list")]
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field '{name}'", param=name, code="unknown_parameter")
    if problem["type"] == "missing":
        return ApiError(
            400, f"'{name or 'the body'}' is missing", param=name or None, code="missing_required_parameter"
        )
    message = str(problem["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{name}: {message}" if name else message, param=name or None, code="invalid_value")
