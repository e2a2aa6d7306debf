"""Errors as answers: a status and a code for each of the library's kinds, without paths and tracebacks."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from zsqretrieval.errors import ImageError, InvalidInputError, MismatchError, ZsqError
from zsqretrieval.web.lanes import BusyError, EndedError
from zsqretrieval.web.schemas import Failure

_log = logging.getLogger("zsqretrieval.web")

_CODES: Mapping[int, str] = {
    400: "invalid_input",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    422: "invalid_input",
    429: "too_many_requests",
    500: "internal",
    503: "unavailable",
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": code.replace("_", " ")}
    for status, code in _CODES.items()
    if status not in (405, 500)
}
"""The errors of every route, for the OpenAPI document."""


class Refused(HTTPException):
    """An error with its status; ``seconds`` says when to try again."""

    def __init__(self, status: int, message: str, code: str | None = None, *, seconds: int = 0) -> None:
        super().__init__(status, message, {"Retry-After": str(seconds)} if seconds else None)
        self.code = code or _CODES.get(status, "error")


def ending() -> Refused:
    """The error for requests to a server that ends."""
    return Refused(503, "the server is ending; try again later", seconds=5)


def problem(error: Exception, album: str) -> Refused:
    """An error as a status and words for people, which leave out ``album``, the path of the album."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, BusyError):
        return Refused(429, str(error), "busy", seconds=error.seconds)
    if isinstance(error, EndedError):
        return ending()
    if isinstance(error, ImageError):  # its source may be a path
        return Refused(422, f"the image cannot be used: {error.reason}", "invalid_image")
    if isinstance(error, InvalidInputError | MismatchError):
        text = str(error)
        return Refused(400, re.sub(rf"{re.escape(album)}[^\s:;,]*", "the album", text) if album else text)
    if isinstance(error, RequestValidationError):
        return Refused(422, _first(error.errors()))
    if isinstance(error, HTTPException):
        refused = Refused(error.status_code, str(error.detail))
        refused.headers = error.headers  # such as Allow
        return refused
    _log.error("a request failed", exc_info=error)
    if isinstance(error, ZsqError):
        return Refused(503, "the album or a model cannot be used now; the server's log says why")
    return Refused(500, "the server made an error; its log says which")


def _first(errors: Sequence[Mapping[str, Any]]) -> str:
    """The first error in words; of a value that may have several types, that of the type which it has."""
    alternatives = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]]
    one = next((one for one in alternatives if not one["type"].endswith("_type")), errors[0])
    place = [str(part) for part in one["loc"] if isinstance(part, int) or part.isidentifier()]
    return f"{'.'.join(place)}: {one['msg']}"


def body(refused: Refused) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"code": refused.code, "message": refused.detail}}


def add_handlers(app: FastAPI, album: str) -> None:
    """Answer all errors of an application in one shape."""

    async def handle(_: Request, error: Exception) -> JSONResponse:
        refused = problem(error, album)
        return JSONResponse(body(refused), refused.status_code, refused.headers)

    for kind in (ZsqError, BusyError, EndedError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)
