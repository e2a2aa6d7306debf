"""The application: an album behind a page and an API.

guard --> routes --> lanes (encoder, generator, pictures) --> retriever
"""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import jinja2
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from zsqretrieval import __version__
from zsqretrieval.data.images import DECODERS
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.display import templates
from zsqretrieval.web import compatible, dialogs, explain, images, search, uploads
from zsqretrieval.web.failures import RESPONSES, Refused, add_handlers
from zsqretrieval.web.guard import Guard
from zsqretrieval.web.kept import Kept
from zsqretrieval.web.lanes import Lane
from zsqretrieval.web.metrics import Metrics
from zsqretrieval.web.schemas import Health
from zsqretrieval.web.settings import Settings
from zsqretrieval.web.state import Served, State, facts
from zsqretrieval.web.thumbnails import Thumbnails

router = APIRouter()

_FIRST_SCREEN = 60
_OTHER_VIEWS = ("q", "and", "not", "like", "unlike", "upload", "ask", "sort", "where")  # parameters of links


def make_app(retriever: Retriever, settings: Settings, cache_folder: Path | None = None) -> Guard:
    """Make the application of an album, with its models loaded.

    Args:
        retriever: the album, in a directory or in memory.
        settings: what its owner decides.
        cache_folder: keeps thumbnails; None keeps them in memory.

    Raises:
        ZsqError: a model cannot be loaded.
    """
    generator = retriever.generator if settings.rerank else None
    search.warm_up(retriever, generates=generator is not None)
    metrics = Metrics()
    served = State(
        retriever,
        settings,
        None if generator is None else generator.fingerprint,
        metrics,
        encoder_lane=Lane("encoder", metrics, waiting=settings.waiting, together=settings.encoded_together),
        generator_lane=Lane(
            "generator", metrics, waiting=settings.waiting, together=settings.reranked_together
        ),
        pictures=Lane("pictures", metrics, waiting=settings.connections, threads=DECODERS),
        thumbnails=Thumbnails(retriever, cache_folder),
        rates=uploads.Rates(settings.upload_rate),
        uploads=Kept(settings.kept, settings.kept_seconds),
        dialogs=Kept(settings.kept, settings.kept_seconds),
        rankings=Kept(settings.kept, settings.kept_seconds),
    )
    images.album_facts(served)
    metrics.images.set_function(lambda: len(retriever))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for lane in served.lanes:
            await run_in_threadpool(lane.close)

    app = FastAPI(title=settings.title, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.served = served
    add_handlers(app, served.album_path)
    for part in (images, search, uploads, explain, dialogs, compatible):
        app.include_router(part.router)
    app.include_router(router)
    return Guard(app, served)


@cache
def _static() -> dict[str, tuple[bytes, str]]:
    """The files of the page with their types, read once, so that no request names a path."""
    own = (files("zsqretrieval.web") / "static").iterdir()
    return {
        one.name: (one.read_bytes(), mimetypes.guess_type(one.name)[0] or "application/octet-stream")
        for one in (*own, files("zsqretrieval.search") / "templates" / "look.css")
        if one.is_file()
    }


@cache
def _template() -> jinja2.Template:
    environment = templates("zsqretrieval.web")
    contents = b"".join(content for _, (content, _) in sorted(_static().items()))
    # One folder for all, since modules import one another by relative addresses.
    environment.globals["static"] = f"/static/{hashlib.sha256(contents).hexdigest()[:12]}"
    environment.filters["quoted"] = partial(quote, safe="")
    return environment.get_template("page.html.j2")


@router.get("/", include_in_schema=False)
def page(request: Request, served: Served) -> Response:
    """The page, with the first screen of images; without them for a link to something else."""
    bare = any(name in request.query_params for name in _OTHER_VIEWS)
    html = _template().render(
        title=served.settings.title,
        query=request.query_params.get("q", ""),
        images=None if bare else [facts(one) for one in served.retriever.browse(_FIRST_SCREEN)],
        total=len(served.retriever),
        asks=served.generator is not None,
    )
    return Response(html, media_type="text/html")


@router.get("/static/{version}/{name}", include_in_schema=False)
async def static(version: str, name: str) -> Response:
    """A file of the page; its address changes with the content of any of them."""
    if name not in _static():
        raise Refused(404, "there is no such file")
    content, kind = _static()[name]
    return Response(content, 200, {"Cache-Control": "private, max-age=31536000, immutable"}, kind)


@router.get("/healthz")
async def health() -> Health:
    """Tell that the server answers."""
    return Health()


@router.get("/metrics", response_class=Response, responses=RESPONSES)
def metrics(served: Served) -> Response:
    """Tell Prometheus what was counted."""
    return Response(generate_latest(served.metrics.registry), media_type=CONTENT_TYPE_LATEST)
