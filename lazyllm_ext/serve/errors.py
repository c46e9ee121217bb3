"""Refusals as OpenAI's clients expect them."""

from __future__ import annotations

from typing import Any

from lazyllm_ext.json_input import shown, wrong


class ApiError(Exception):
    """What a client did wrong, in one sentence, and maybe with which parameter."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,  # of HTTP
        code: str | None = None,  # a word for programs
        kind: str = "invalid_request_error",  # OpenAI's `type`
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.kind = status, param, code, kind

    def to_dict(self) -> dict[str, Any]:
        """The body of the response."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def expected(param: str, what: str, got: object, code: str = "invalid_value") -> ApiError:
    """The error of a parameter that has another value than expected."""
    return ApiError(str(wrong(param, what, got)), param, code=code)


def check_model(asked: str, served: str) -> None:
    """Raises ApiError where another model is asked for than the one that is served."""
    if asked != served:
        raise ApiError(
            f"model: expected {served!r}, the one that is served, got {shown(asked)}",
            "model",
            status=404,
            code="model_not_found",
        )


def internal(error: BaseException) -> ApiError:
    """What a client is told of a fault that is not its own."""
    said = f"the server failed while it answered: {type(error).__name__}"
    return ApiError(said, status=500, code="internal_error", kind="server_error")
