"""Against packages that are installed, as far as the import system can tell: a dist-info folder each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from zsqretrieval import plugins
from zsqretrieval.errors import InvalidInputError, ZsqError

MODULE = """
class Encoder:
    def __init__(self, size):
        self.size = size
    @classmethod
    def from_config(cls, config):
        return cls(**config)
class Outer:
    class Inner: pass
class Derived(Encoder): pass
number = 3
"""


class Site:
    """A folder on ``sys.path`` to install pretended packages into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, package: str, entry_points: str, module: str = MODULE) -> None:
        name = package.replace("-", "_")
        info = self.folder / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(entry_points)
        (self.folder / f"{name}.py").write_text(module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_parts_of_the_library_are_available() -> None:
    assert {"clip", "mini"} <= set(plugins.available("encoder"))
    assert {"exact", "hnsw"} <= set(plugins.available("index"))
    assert plugins.load("encoder", "clip").__name__ == "CLIPEncoder"


def test_listing_imports_nothing(site: Site) -> None:
    site.install("acme-parts", "[zsqretrieval.encoders]\nacme = acme_parts:Encoder\n", "raise SystemExit")
    point = plugins.available("encoder")["acme"]
    assert (point.value, point.dist.name) == ("acme_parts:Encoder", "acme-parts")
    assert list(plugins.available("encoder")) == sorted(plugins.available("encoder"))
    assert "acme" not in plugins.available("index")
    assert "acme_parts" not in sys.modules


def test_create_passes_settings_to_the_loaded_class(site: Site) -> None:
    site.install("acme-parts", "[zsqretrieval.encoders]\nacme = acme_parts:Encoder\n")
    part = plugins.create("encoder", "acme", {"size": 7})
    assert type(part) is plugins.load("encoder", "acme") is sys.modules["acme_parts"].Encoder
    assert part.size == 7


def test_name_of_is_the_inverse_of_load(site: Site) -> None:
    site.install(
        "acme-parts",
        "[zsqretrieval.encoders]\nacme = acme_parts:Encoder\n"
        "[zsqretrieval.indexes]\ninner = acme_parts:Outer.Inner\nreexported = acme_front:Encoder\n",
    )
    (site.folder / "acme_front.py").write_text("from acme_parts import Encoder")
    encoder, inner = plugins.load("encoder", "acme"), plugins.load("index", "inner")
    derived = sys.modules["acme_parts"].Derived
    assert plugins.name_of("encoder", encoder(1)) == "acme"
    assert plugins.name_of("index", inner()) == "inner"
    assert plugins.name_of("encoder", derived(1)) is None, "its own class would not come back"
    assert plugins.name_of("encoder", inner()) is None
    assert plugins.name_of("encoder", object()) is None
    plugins.load("index", "reexported")
    assert plugins.name_of("index", encoder(1)) == "reexported"


def test_unknown_name_lists_available_parts(site: Site) -> None:
    site.install("acme-parts", "[zsqretrieval.generators]\nkosmos-9 = acme_parts:Encoder\n")
    with pytest.raises(InvalidInputError, match=r"no encoder is named 'clipp'; did you mean clip\?.*mini"):
        plugins.load("encoder", "clipp")
    with pytest.raises(InvalidInputError, match=r"no generator is named 'xyz'; Installed: .*kosmos-9"):
        plugins.create("generator", "xyz", {})
    unheard: Any = "oracle"
    for function in (plugins.available, lambda kind: plugins.name_of(kind, 1)):
        with pytest.raises(
            InvalidInputError, match="no kind of part 'oracle'; choose from encoder, index, generator"
        ):
            function(unheard)


@pytest.mark.parametrize(
    "module, cause",
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("Encoder = 1 / 0", "ZeroDivisionError"),
        ("", "AttributeError: .*Encoder"),
    ],
)
def test_failed_import_names_the_package(site: Site, module: str, cause: str) -> None:
    site.install("acme-parts", "[zsqretrieval.encoders]\nacme = acme_parts:Encoder\n", module)
    with pytest.raises(ZsqError, match=rf"'acme' of acme-parts 1\.2 cannot be imported .*{cause}") as caught:
        plugins.load("encoder", "acme")
    assert caught.value.__cause__ is not None


def test_part_that_is_no_class_is_refused(site: Site) -> None:
    site.install("acme-parts", "[zsqretrieval.encoders]\nacme = acme_parts:number\n")
    with pytest.raises(ZsqError, match=r"acme-parts 1\.2 is not a class: acme_parts:number is 3"):
        plugins.load("encoder", "acme")


def test_part_without_from_config_is_refused(site: Site) -> None:
    site.install("acme-parts", "[zsqretrieval.encoders]\nacme = acme_parts:Outer\n")
    with pytest.raises(InvalidInputError, match="no from_config"):
        plugins.create("encoder", "acme", {})


def test_name_claimed_by_two_packages_names_both(site: Site) -> None:
    site.install(
        "acme-parts", "[zsqretrieval.encoders]\nsame = acme_parts:Encoder\nunique = acme_parts:Encoder\n"
    )
    site.install("best-parts", "[zsqretrieval.encoders]\nsame = best_parts:Encoder\n")
    with pytest.raises(ZsqError, match=r"'same' is claimed by acme-parts 1\.2 and best-parts 1\.2"):
        plugins.load("encoder", "same")
    unique = plugins.load("encoder", "unique")
    assert plugins.name_of("encoder", unique(1)) == "unique", "a name that cannot be loaded is no name"


def test_name_of_two_packages_for_one_class_loads(site: Site) -> None:
    """As when a package is installed under its old name and its new one."""
    site.install("acme-parts", "[zsqretrieval.encoders]\nsame = acme_parts:Encoder\n")
    site.install("acme-parts-old", "[zsqretrieval.encoders]\nsame = acme_parts:Encoder\n")
    assert plugins.load("encoder", "same") is sys.modules["acme_parts"].Encoder
