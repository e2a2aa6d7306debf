"""One album and one client for all tests that change neither."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from pages import chromium
from served import client, make_album
from zsqretrieval.retriever import Retriever

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    """The album."""
    with make_album(tmp_path_factory.mktemp("web")) as made:
        yield made


@pytest.fixture(scope="session")
def web(shown: Retriever) -> Iterator[TestClient]:
    """A client of the album."""
    with client(shown) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser per module: a running one has an event loop, and no other can start beside it."""
    with chromium() as made:
        yield made


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let searches name the image that is gone."""
    item.add_marker(pytest.mark.filterwarnings("ignore:.*cannot be (opened|shown):RuntimeWarning"))
