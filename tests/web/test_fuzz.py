"""Requests drawn from the OpenAPI document: no error of the server, and only answers that it describes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from served import HOST, make_album
from zsqretrieval.web.app import make_app
from zsqretrieval.web.settings import Settings

ROUTES = (
    "GET /api/album", "GET /api/images", "GET /api/images/{id}", "GET /thumb/{id}", "GET /image/{id}",
    "POST /api/download", "POST /api/search", "POST /api/uploads", "GET /thumb-upload/{id}",
    "POST /api/explain", "POST /api/questions", "POST /api/dialog", "GET /api/dialog/{dialog}",
    "DELETE /api/dialog/{dialog}", "POST /api/dialog/{dialog}/answer", "POST /api/dialog/{dialog}/tell",
    "POST /api/dialog/{dialog}/undo", "POST /v1/rerank", "POST /v1/embeddings", "GET /healthz",
    "GET /metrics",
)  # fmt: skip


REFUSALS = [400, 404, 405, 406, 409, 413, 415, 422, 429]  # of wrong requests; 413 if one is also too large
CONFIG = SchemathesisConfig.from_dict(
    {"checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}}}
)


def going_on(app: Any) -> Any:
    """The application without its end, which every request of schemathesis would bring."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    return answer


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with make_album(tmp_path_factory.mktemp("fuzz")) as album:
        app = make_app(album, Settings(names=HOST | {"localhost"}, upload_rate=10**9))
        with TestClient(app):
            yield schemathesis.openapi.from_asgi("/openapi.json", going_on(app), config=CONFIG)


def operations(schema: Any) -> dict[str, Any]:
    return {one.label: one for one in (found.ok() for found in schema.get_all_operations())}


def test_document_has_all_routes(described: Any) -> None:
    assert sorted(operations(described)) == sorted(ROUTES)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the last schemathesis for Python 3.10 fails itself")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_those_of_the_document(
    described: Any, route: str, mode: GenerationMode, request: pytest.FixtureRequest
) -> None:
    operation = operations(described)[route]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
        pytest.skip("takes nothing that could be of a wrong type")

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=500 if request.config.getoption("--slow") else 10,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        # a filter, or the id of an image, is more than the document can say
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()
