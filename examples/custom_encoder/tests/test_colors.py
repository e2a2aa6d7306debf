"""The contract, what the encoder promises beyond it, and the way through an album."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from zsqretrieval_colors import SHADES, ColorEncoder

from zsqretrieval import Retriever, plugins
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.testing import encoder_checks, parametrize_checks
from zsqretrieval.types import Image


@parametrize_checks(encoder_checks, ColorEncoder)
def test_contract(check):
    """Everything the library demands of an encoder."""
    check()


def picture(*colours: str | tuple[int, ...]) -> Image:
    """Equal stripes of some colours."""
    canvas = PILImage.new("RGB", (48 * len(colours), 48))
    for place, colour in enumerate(colours):
        canvas.paste(colour, (48 * place, 0, 48 * (place + 1), 48))
    content = io.BytesIO()
    canvas.save(content, "PNG")
    return Image(content.getvalue(), " and ".join(map(str, colours)))


@pytest.mark.parametrize("shade", SHADES)
def test_every_shade_finds_the_picture_of_it(shade):
    """One plain picture of every shade; the name of a shade has to find its own."""
    encoder = ColorEncoder()
    images = encoder.encode_image([picture(rgb) for rgb in SHADES.values()])
    found = images @ encoder.encode_text([f"a {shade} picture"])[0]
    best = list(SHADES)[int(found.argmax())]
    assert best == shade or best.endswith(f" {shade}"), "a hue means its dark and its light shade too"


def test_the_score_of_a_shade_is_one():
    """By hand: the same one colour on both sides gives the same distribution, so the coefficient is 1."""
    encoder = ColorEncoder()
    (image,) = encoder.encode_image([picture(SHADES["dark green"])])
    scores = encoder.encode_text(["dark green", "a dark green forest", "forest"]) @ image
    # Of three phrases (a, dark green, forest) one is understood: sqrt(1/3). Of one, none: 0.
    assert scores == pytest.approx([1, np.sqrt(1 / 3), 0], abs=1e-6)


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ("a dark blue picture", ["navy"], ["lightskyblue"]),
        ("pale blue", ["lightskyblue"], ["navy"]),
        ("something dark", ["black"], ["white"]),
        ("red and white", ["red", "white"], ["red"]),
        ("Red, green", ["red", "green"], ["red", "blue"]),
        ("gray", ["grey"], ["pink"]),
    ],
)
def test_questions(question, right, wrong):
    """The right picture before the wrong one, clearly."""
    encoder = ColorEncoder()
    one, other = encoder.encode_image([picture(*right), picture(*wrong)]) @ encoder.encode_text([question])[0]
    assert one > other + 0.1


def test_other_words_change_no_order():
    """They lower every score by the same factor."""
    encoder = ColorEncoder()
    images = encoder.encode_image([picture(rgb) for rgb in SHADES.values()])
    plain, wordy = encoder.encode_text(["red", "is there anything red?"])
    np.testing.assert_allclose(images @ wordy, images @ plain / 2, atol=1e-6)


def test_settings_are_in_the_fingerprint():
    """Vectors of other settings are not comparable, and an album has to notice."""
    settings = [ColorEncoder(), ColorEncoder(side=32), ColorEncoder(spread=0.1)]
    assert len({encoder.fingerprint for encoder in settings}) == 3
    again = ColorEncoder.from_config(ColorEncoder(spread=0.1).config)
    assert again.fingerprint == settings[2].fingerprint


@pytest.mark.parametrize("settings", [{"side": 0}, {"spread": 0.0}, {"spread": float("nan")}])
def test_impossible_settings_are_refused(settings):
    """With the error of the library."""
    with pytest.raises(InvalidInputError, match="positive"):
        ColorEncoder(**settings)


def test_an_album_restores_it_by_name(tmp_path: Path):
    """Installed, it is known by its entry point, and settings survive."""
    encoder = plugins.create("encoder", "colors", {"side": 32})
    with Retriever(encoder, path=tmp_path / "album") as album:
        album.add([picture("red"), picture("blue"), picture("yellow")])
        album.save()
    with Retriever.open(tmp_path / "album") as album:
        assert isinstance(album.encoder, ColorEncoder) and album.encoder.config["side"] == 32
        assert album.search("which one is blue?", k=1)[0].source == "blue"
