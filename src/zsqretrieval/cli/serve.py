"""``zsq serve``: a page and an API for an album."""

from __future__ import annotations

import ipaddress
import secrets
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from zsqretrieval._util.optional import import_optional
from zsqretrieval.cli.console import say
from zsqretrieval.cli.options import Album, Device, GeneratorPreset, GeneratorWeights, TrustParts, open_album

if TYPE_CHECKING:
    from zsqretrieval.retriever import Retriever

Host = Annotated[
    str, typer.Option(help="Address to serve on; any other than this machine's own needs a token.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")]


def serve(
    album: Album,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="ZSQ_TOKEN",
            help="Secret that clients have to send.",
            show_default="none on this machine, else a new one",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name by which clients may reach the server; may be repeated."),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Heading of the page.", show_default="the album's name")
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank/--no-rerank", help="Let the generator re-rank, explain and ask.")
    ] = True,
    preset: GeneratorPreset = None,
    generator_weights: GeneratorWeights = None,
    trust_parts: TrustParts = False,
    device: Device = None,
) -> None:
    """Serve an album as a web page and a JSON API, until Ctrl-C.

    Only this machine can reach it, unless you give another --host; then clients need a token.
    """
    with open_album(
        album, preset=preset, generator_weights=generator_weights, trust_parts=trust_parts
    ) as retriever:
        run_server(
            retriever, host, port, token=token, title=title or album.stem, names=allow_host or [],
            rerank=rerank,
        )  # fmt: skip


def run_server(
    retriever: Retriever,
    host: str,
    port: int,
    *,
    title: str,
    token: str | None = None,
    names: list[str] | None = None,
    rerank: bool = True,
) -> None:
    """Serve an album until a signal; says where."""
    import_optional("fastapi", "zsq serve", "pip install 'zsqretrieval[web]'")
    from platformdirs import user_cache_path

    from zsqretrieval.web.app import make_app
    from zsqretrieval.web.server import Server, listening
    from zsqretrieval.web.settings import LOOPBACK, Settings

    if token is None and not _is_local(host):
        token = secrets.token_urlsafe(24)
    settings = Settings(
        title=title, token=token, names=LOOPBACK | {host.lower(), *map(str.lower, names or ())}, rerank=rerank
    )
    with listening(host, port) as socket:
        server = Server(make_app(retriever, settings, user_cache_path("zsqretrieval", appauthor=False)))
        at = f"[{host}]" if ":" in host else host
        query = f"?token={quote(token)}" if token else ""
        say(f"Serving {len(retriever)} images at http://{at}:{socket.getsockname()[1]}/{query}")
        say("Ctrl-C ends the server.")
        server.run(sockets=[socket])


def _is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
