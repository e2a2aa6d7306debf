"""Against packages that are installed, as far as the import system can tell: a dist-info folder each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from zsqretrieval import plugins
from zsqretrieval.errors import AlbumError, InvalidInputError, ZsqError
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.fusion import WeightedSum
from zsqretrieval.testing import ToyEncoder, ToyGenerator, ToyIndex
from zsqretrieval.testing.pictures import paintings

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
    assert "acme" not in plugins.available("encoder")  # a package that comes later is seen
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


# --- names in a running program ---------------------------------------------------------------------------


class Sized(ToyEncoder):
    """An importable part with settings that no package offers."""

    safe_settings = {"size": range(10)}  # noqa: RUF012

    def __init__(self, size: Any = 1) -> None:
        super().__init__()
        self.config = {"size": size}

    @classmethod
    def from_config(cls, config: Any) -> Sized:
        return cls(**config)


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_registered", {kind: {} for kind in plugins._registered})


@pytest.mark.parametrize(
    ("kind", "part"),
    [("encoder", Sized), ("index", ToyIndex), ("generator", ToyGenerator), ("fusion", WeightedSum)],
)
def test_registered_class_is_a_plugin(kind: Any, part: Any) -> None:
    plugins.register(kind, "mine", part)
    plugins.register(kind, "mine", part)  # as a cell of a notebook that is run twice
    assert "mine" in plugins.available(kind) and plugins.load(kind, "mine") is part
    assert "mine" not in plugins.available("encoder" if kind != "encoder" else "index")


def test_registered_name_describes_and_restores_a_part() -> None:
    plugins.register("encoder", "mine", Sized)
    described = plugins.describe("encoder", Sized(3))
    assert described == {"plugin": "mine", "config": {"size": 3}}
    assert plugins.restore("encoder", described, "album").config == {"size": 3}
    assert plugins.names_nothing("encoder", described)
    assert not plugins.names_nothing("encoder", {"plugin": "mine", "config": {"size": "/tmp/x"}})


def test_class_that_is_defined_again_takes_the_place_of_the_first() -> None:
    def cell() -> type:
        class Mine(Sized):
            pass

        return Mine

    first, second = cell(), cell()
    plugins.register("encoder", "mine", first)
    plugins.register("encoder", "mine", second)
    assert plugins.load("encoder", "mine") is second
    assert plugins.describe("encoder", second(2)) == {"plugin": "mine", "config": {"size": 2}}
    assert plugins.describe("encoder", first(2)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("oracle", "mine", Sized), "no kind of part 'oracle'"),
        (("encoder", "clip", Sized), r"the encoder 'clip' is taken by zsqretrieval .*; choose another name"),
        (("encoder", "", Sized), "must be a non-empty string"),
        (("encoder", "my:part", Sized), "has no colon"),
        (("encoder", "mine", Sized()), "pass the class itself"),
        (("encoder", "mine", ToyIndex), "is no class of encoders: it has no encode_image, encode_text"),
        (("fusion", "mine", Sized), "it has no fuse"),
    ],
)
def test_wrong_registration_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        plugins.register(*arguments)


def test_name_that_another_class_has_is_refused() -> None:
    plugins.register("encoder", "mine", Sized)
    with pytest.raises(InvalidInputError, match=rf"'mine' is taken by {__name__}:Sized"):
        plugins.register("encoder", "mine", ToyEncoder)
    assert plugins.load("encoder", "mine") is Sized


# --- import paths -----------------------------------------------------------------------------------------

MINE = """
from zsqretrieval.testing.toys import ToyEncoder, ToyIndex
class MyEncoder(ToyEncoder):
    def __init__(self, size=1):
        super().__init__()
        self.config = {"size": size}
    @classmethod
    def from_config(cls, config):
        return cls(**config)
class Outer:
    class Inner(MyEncoder): pass
class Unfit: pass
other = MyEncoder
"""


def test_importable_part_is_described_by_its_path(site: Site) -> None:
    (site.folder / "my_parts.py").write_text(MINE)
    import my_parts  # type: ignore[import-not-found]

    for part, path in (
        (my_parts.MyEncoder, "my_parts:MyEncoder"),
        (my_parts.Outer.Inner, "my_parts:Outer.Inner"),
    ):
        described = plugins.describe("encoder", part(3))
        assert described == {"plugin": path, "config": {"size": 3}}
        restored = plugins.restore("encoder", described, "album")
        assert type(restored) is part and restored.config == {"size": 3}
    assert plugins.describe("encoder", my_parts.MyEncoder({1, 2})) is None, "settings that no album can hold"
    assert plugins.describe("encoder", ToyEncoder()) is None, "no settings"


@pytest.mark.parametrize("module", ["__main__", "gone"])
def test_class_that_cannot_be_imported_again_has_no_path(module: str) -> None:
    class Local(Sized):
        pass

    assert plugins.describe("encoder", Local()) is None
    elsewhere = type("Elsewhere", (Sized,), {"__module__": module})
    sys.modules["__main__"].Elsewhere = elsewhere
    try:
        assert plugins.describe("encoder", elsewhere()) is None
    finally:
        del sys.modules["__main__"].Elsewhere  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("my_parts:Gone", r"cannot be imported from my_parts:Gone: AttributeError"),
        ("no_such_module:X", "ModuleNotFoundError"),
        ("my_parts:Unfit", "is no class of encoders: it has no encode_image, encode_text"),
        ("my_parts:Outer.__name__", "is not a class"),
        ("..my_parts:MyEncoder", "no encoder is named"),
        ("my_parts:", "no encoder is named"),
        ("my_parts:MyEncoder()", "no encoder is named"),
    ],
)
def test_path_that_leads_to_no_part_is_refused(site: Site, path: str, error: str) -> None:
    (site.folder / "my_parts.py").write_text(MINE)
    with pytest.raises(ZsqError, match=error):
        plugins.create("encoder", path, {"size": 3})


def test_album_restores_an_importable_part_in_a_program_that_imports_it(tmp_path: Path) -> None:
    with Retriever(Sized(3), path=tmp_path / "album") as retriever:
        retriever.add(paintings(2))
    with Retriever.open(tmp_path / "album") as retriever:  # imported here, and its settings are harmless
        assert type(retriever.encoder) is Sized and retriever.encoder.config == {"size": 3}
    with Retriever(Sized(30), path=tmp_path / "other"):
        pass
    with pytest.raises(AlbumError, match=rf"asks for the encoder '{__name__}:Sized' with size=30: "):
        Retriever.open(tmp_path / "other")
    with Retriever.open(tmp_path / "other", trust_parts=True) as retriever:
        assert retriever.encoder.config == {"size": 30}
