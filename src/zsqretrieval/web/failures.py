"""Errors as answers: the library's kinds of errors have statuses, and no path or traceback leaves the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from zsqretrieval.errors import ImageError, InvalidInputError, MismatchError, ZsqError
from zsqretrieval.web.lanes import BusyError
from zsqretrieval.web.schemas import Failure

_log = logging.getLogger("zsqretrieval.web")

CODES: Mapping[int, str] = {
    400: "invalid_input",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_input",
    429: "too_many_requests",
    500: "internal",
    503: "unavailable",
}
"""Codes of errors by status."""

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": CODES[status].replace("_", " ")}
    for status in (400, 401, 403, 404, 413, 415, 422, 429, 503)
}
"""The errors of every route, for the OpenAPI document."""


class Refused(HTTPException):
    """An error that says itself which status it has."""

    def __init__(self, status: int, message: str, code: str | None = None, *, seconds: int = 0) -> None:
        super().__init__(status, message, {"Retry-After": str(seconds)} if seconds else None)
        self.code = code or CODES[status]


def problem(error: Exception, album: str = "") -> Refused:
    """An error as a status and words for people; ``album`` is the path that they must not contain."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, BusyError):
        return Refused(429, str(error), "busy", seconds=error.seconds)
    if isinstance(error, ImageError):  # its source may be a path
        return Refused(422, f"the image cannot be used: {error.reason}", "invalid_image")
    if isinstance(error, InvalidInputError | MismatchError):
        text = str(error)
        return Refused(400, text.replace(album, "the album") if album else text)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        return Refused(422, f"{place}: {first['msg']}")
    if isinstance(error, HTTPException):
        return Refused(error.status_code, str(error.detail))
    _log.error("a request failed", exc_info=error)
    if isinstance(error, ZsqError):
        return Refused(503, "the album or a model cannot be used now; the server's log says why")
    return Refused(500, "the server made an error; its log says which")


def body(refused: Refused) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"code": refused.code, "message": refused.detail}}


def add_handlers(app: FastAPI, album: str) -> None:
    """Answer all errors of an application in one shape."""

    async def handle(_: Request, error: Exception) -> JSONResponse:
        refused = problem(error, album)
        return JSONResponse(body(refused), refused.status_code, refused.headers)

    for kind in (ZsqError, BusyError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)
