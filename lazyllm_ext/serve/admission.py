"""Who is answered, and how much of a request is read."""

from __future__ import annotations

import asyncio
import hmac
from ipaddress import ip_address
from typing import TYPE_CHECKING

from lazyllm_ext.json_input import shown

from .errors import ApiError

if TYPE_CHECKING:
    from fastapi import Request

_BODY_SECONDS = 30  # in which all of a body has to come


def check_host(request: Request, own: str | None) -> None:
    """Raises ApiError for a request to a name that is not this machine's.

    A page of another site can make a browser send such ones, where its own name leads to 127.0.0.1
    (DNS rebinding); an address or `localhost` leads nowhere else.

    Args:
        own: the name that the server listens on; None where any name may lead to it.
    """
    sent = request.headers.get("host")
    if own is None or sent is None:  # browsers always send one
        return
    name = sent.lower()
    name = name[1:].partition("]")[0] if name[:1] == "[" else name.partition(":")[0]
    if name not in (own.lower(), "localhost") and not name.endswith(".localhost"):
        try:
            ip_address(name)
        except ValueError:
            said = f"Host: expected localhost, an address or {own!r}, got {shown(sent)}"
            raise ApiError(said, status=403, code="invalid_host") from None


def check_key(request: Request, key: str | None) -> None:
    """Raises ApiError for a request without the key; None for no check."""
    if key is None:
        return
    sent = request.headers.get("authorization", "").encode("latin-1")  # as bytes came
    scheme, _, sent_key = sent.strip().partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(sent_key.strip(), key.encode()):
        raise ApiError(
            "Authorization: expected 'Bearer ' and the key that the server was started with",
            status=401,
            code="invalid_api_key",
            kind="authentication_error",
        )


class Body:
    """The body of a request, as it comes.

    Raises:
        ApiError: another type than JSON, which pages of other sites may send; or a length above
            `most` bytes, also while it is read.
    """

    def __init__(self, request: Request, most: int):
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            said = f"Content-Type: expected application/json, got {shown(kind)}"
            raise ApiError(said, status=415)
        self._most, self._came = most, bytearray()
        length = request.headers.get("content-length", "")
        self._check_length(int(length) if length.isdecimal() else 0)
        self._parts = request.stream()
        self._complete = False
        self._deadline = asyncio.get_running_loop().time() + _BODY_SECONDS

    async def read(self, until: int | None = None) -> bytes:
        """What has come when all has, or more than `until` bytes.

        Raises:
            ApiError: too much, or too slow: a client that stalls keeps no place from others.
        """
        loop = asyncio.get_running_loop()
        while not self._complete and (until is None or len(self._came) <= until):
            try:
                part = await asyncio.wait_for(self._next(), self._deadline - loop.time())
            except asyncio.TimeoutError:
                said = f"body: expected all of it within {_BODY_SECONDS} s, got a part"
                raise ApiError(said, status=408) from None
            self._came += part
            self._check_length(len(self._came))
        return bytes(self._came)

    async def _next(self) -> bytes:
        async for part in self._parts:
            return part
        self._complete = True
        return b""

    def _check_length(self, length: int) -> None:
        if length > self._most:
            raise ApiError(
                f"body: expected at most {self._most} bytes, ample for the model's context, "
                "got more",
                status=413,
            )
