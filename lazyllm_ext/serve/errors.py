"""Refusals as OpenAI's clients expect them."""

from __future__ import annotations

from typing import Any

from lazyllm_ext.json_input import wrong


class ApiError(Exception):
    """What a client did wrong, in one sentence.

    Args:
        message: the sentence.
        param: the parameter it is about.
        status: of HTTP.
        code: a word for programs.
        kind: OpenAI's `type` of error.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        kind: str = "invalid_request_error",
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


def internal(error: BaseException) -> ApiError:
    """What a client is told of a fault that is not its own."""
    said = f"the server failed while it answered: {type(error).__name__}"
    return ApiError(said, status=500, code="internal_error", kind="server_error")
