"""An album to begin with: photographs that arrive inside scikit-image and scikit-learn, and questions for it.

Both packages ship a few images in their wheels and download the rest on demand. Only what is in the wheels is
used here, read as plain files, so nothing is downloaded and neither package is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from zsqretrieval.errors import MissingDependencyError
from zsqretrieval.types import Image

_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph of the album."""

    id: str
    package: str  # importable package whose wheel holds it
    file: str  # path inside that package
    credit: str  # author and terms, as the package states them


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the id of the one photograph that answers it; None when nobody has said which does."""

    text: str
    expected: str | None = None


# Left out: drawings and charts, one of two near-identical motorcycles, a clock blurred beyond recognition,
# and images of a few pixels.
PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph("astronaut", "skimage", "data/astronaut.png", "NASA, public domain"),
    Photograph("bricks", "skimage", "data/brick.png", "CC0Textures, CC0"),
    Photograph("cat", "skimage", "data/chelsea.png", "Stéfan van der Walt, CC0"),
    Photograph("coffee", "skimage", "data/coffee.png", "Rachel Michetti, CC0"),
    Photograph("coins", "skimage", "data/coins.png", "Brooklyn Museum, no known copyright restrictions"),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg", "vultilion on Flickr, CC BY 2.0"),
    Photograph("galaxies", "skimage", "data/hubble_deep_field.jpg", "NASA and ESA, public domain"),
    Photograph("grass", "skimage", "data/grass.png", "linolafett on DeviantArt, CC0"),
    Photograph("gravel", "skimage", "data/gravel.png", "CC0Textures, CC0"),
    Photograph("moon", "skimage", "data/moon.png", "scikit-image"),
    Photograph("motorcycle", "skimage", "data/motorcycle_left.png", "Nesic et al., Middlebury Stereo 2014"),
    Photograph("page", "skimage", "data/page.png", "scikit-image"),
    Photograph("pagoda", "sklearn", "datasets/images/china.jpg", "danielbuechele on Flickr, CC BY 2.0"),
    Photograph("photographer", "skimage", "data/camera.png", "Lav Varshney, CC0"),
    Photograph("retina", "skimage", "data/retina.jpg", "Mikael Häggström, CC0"),
    Photograph("rocket", "skimage", "data/rocket.jpg", "SpaceX, public domain"),
    Photograph("tissue", "skimage", "data/ihc.png", "Center for Microscopy and Molecular Imaging"),
    Photograph("writing", "skimage", "data/text.png", "Wikipedia, public domain"),
)
"""The photographs that the wheels of scikit-image 0.25 and scikit-learn 1.6 and later hold."""

QUESTIONS: tuple[Question, ...] = (
    Question("Who is wearing a spacesuit?", "astronaut"),
    Question("Where is a cat looking at me?", "cat"),
    Question("Is there a cup of coffee on a wooden table?", "coffee"),
    Question("Which picture shows a red motorcycle in a garage?", "motorcycle"),
    Question("Is a rocket about to be launched?", "rocket"),
    Question("Who is taking a picture with a camera on a tripod?", "photographer"),
    Question("Where is a Chinese temple with curved roofs?", "pagoda"),
    Question("What does an orange flower in bloom look like?", "flower"),
    Question("Which one shows a collection of old coins?", "coins"),
    Question("Where can I see many stars and galaxies in deep space?", "galaxies"),
    Question("Are there craters on the surface of the moon?", "moon"),
    Question("Where is a wall of bricks?", "bricks"),
    Question("Is there some grass to lie in?", "grass"),
    Question("Where is the ground covered with small stones?", "gravel"),
    Question("Which picture is a page of a printed book?", "page"),
    Question("What does the inside of an eye look like to a doctor?", "retina"),
)
"""Written before any model had seen them, and not changed to suit one."""

GENERIC_QUESTIONS: tuple[Question, ...] = (
    Question("Where are people together?"),
    Question("Is there an animal?"),
    Question("What is there to eat or drink?"),
    Question("Which picture was taken in nature?"),
    Question("Is there a building?"),
    Question("Where is something with wheels?"),
)
"""For an album of which nothing is known."""


def photographs() -> list[Image]:
    """The photographs that the installed packages hold, not opened, with their credit as metadata.

    Raises:
        MissingDependencyError: a package is not installed, or holds none of them.
    """
    absent = dict(_DISTRIBUTIONS)
    found = []
    for one in PHOTOGRAPHS:
        spec = find_spec(one.package)  # of a top-level package: found, not imported
        for folder in list((spec and spec.submodule_search_locations) or [])[:1]:
            path = Path(folder, one.file)
            if path.is_file():
                found.append(Image(path, str(path), id=one.id, metadata={"credit": one.credit}))
                absent.pop(one.package, None)
    for distribution in absent.values():
        raise MissingDependencyError(
            distribution, "the album of the demo", 'pip install "zsqretrieval[demo]"'
        )
    return found
