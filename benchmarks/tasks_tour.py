"""All tasks of :mod:`zsqretrieval.tasks` with one generator; prints Markdown.

    python -m benchmarks.tasks_tour

The photographs are those of the demo, texts and shapes are drawn here, so it runs offline
with the mini generator. Nothing is selected: the mistakes of a small model are printed as well.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
from collections.abc import Sequence

from zsqretrieval import plugins
from zsqretrieval.data.samples import photographs
from zsqretrieval.generators.prompts import Prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks import (
    Choice,
    answer,
    answer_step_by_step,
    caption,
    choose_step_by_step,
    classify,
    classify_sentiment,
    count_correct,
    k_shot,
    recognize,
    render_text,
)
from zsqretrieval.tasks.choice import SENTIMENT_QUESTION, SENTIMENTS
from zsqretrieval.tasks.raven_matrices import Panel, draw_panel
from zsqretrieval.types import Image

NAMES = {
    "astronaut": "astronaut",
    "balloon": "balloon",
    "books": "books",
    "bridge": "bridge",
    "cat": "cat",
    "coffee": "cup of coffee",
    "dog": "dog",
    "flower": "flower",
    "football": "ball",
    "pagoda": "temple",
    "pizza": "pizza",
    "rocket": "rocket",
}
QUESTIONS = {
    "astronaut": "what is the woman wearing?",
    "cat": "what animal is this?",
    "coffee": "what is on the table?",
}
# Names without a meaning, so that only their descriptions can help.
MADE_UP = {
    "dax": "an animal with fur, whiskers and pointed ears",
    "wug": "a vehicle with an engine and four wheels",
    "blicket": "a plant with bright petals",
    "toma": "a hot drink in a cup",
    "fep": "a building with curved roofs",
    "ziv": "a person in an orange suit",
}
MADE_UP_OF = {
    "cat": "dax",
    "sports_car": "wug",
    "flower": "blicket",
    "coffee": "toma",
    "pagoda": "fep",
    "astronaut": "ziv",
}
OPINIONS = {
    "positive": (
        "A warm and funny film that I would gladly see again.",
        "The best two hours I have spent in a cinema this year.",
        "Wonderful acting, and a story that stays with you.",
        "Beautiful pictures and a brave, tender ending.",
        "I laughed, I cried, I told all my friends to go.",
        "Smart, quick and full of joy.",
        "A small masterpiece from a director to watch.",
        "Every scene is a delight.",
        "Thrilling from the first minute to the last.",
        "Charming, honest and perfectly cast.",
    ),
    "negative": (
        "A dull and noisy film that I would like to forget.",
        "The worst two hours I have spent in a cinema this year.",
        "Wooden acting, and a story that goes nowhere.",
        "Ugly pictures and a cheap, silly ending.",
        "I yawned, I sighed, I told all my friends to stay away.",
        "Stupid, slow and without any joy.",
        "A big mess from a director who should know better.",
        "Every scene is a pain.",
        "Boring from the first minute to the last.",
        "Annoying, false and badly cast.",
    ),
}
SHAPES = {1: "triangle", 2: "square", 5: "circle"}


def row(*cells: object) -> None:
    """Print one row of a table."""
    print(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")


def head(title: str, *columns: str) -> None:
    """Print the title and the head of a table."""
    print(f"\n**{title}**\n")
    row(*columns)
    print("|---" * len(columns) + "|")


def judge(items: str, way: str, choices: Sequence[Choice], answers: Sequence[str]) -> None:
    """Print the accuracy with its interval, and the mean probability of the right option."""
    right = [one.posterior[one.options.index(name)] for one, name in zip(choices, answers, strict=True)]
    row(items, way, count_correct(choices, answers), f"{sum(right) / len(right):.2f}")


def writing(generator: Generator, photos: dict[str, Image]) -> None:
    """Captions, answers, and answers by a chain of thought."""
    images, questions = [photos[id] for id in QUESTIONS], list(QUESTIONS.values())
    head("Captions and answers", "photograph", "caption", "question", "answer")
    answers = answer(generator, images, questions)
    for cells in zip(QUESTIONS, caption(generator, images), questions, answers, strict=True):
        row(*cells)
    head("Chain of thought", "photograph", "rationale", "answer after it")
    for id, found in zip(QUESTIONS, answer_step_by_step(generator, images, questions), strict=True):
        row(id, found.rationale, found.answer)


def recognition(generator: Generator, photos: dict[str, Image]) -> None:
    """Classification by names, then by made-up names with descriptions."""
    found = classify(generator, [photos[id] for id in NAMES], list(NAMES.values()))
    judge("twelve photographs, twelve names", "names alone", found, list(NAMES.values()))

    images = [photos[id] for id in MADE_UP_OF]
    plain = classify(
        generator,
        images,
        list(MADE_UP),
        prompt=Prompt("<image>Question:what is the name of thing in the picture? Answer:"),
    )
    items = "six photographs, six made-up names"
    judge(items, "names alone", plain, list(MADE_UP_OF.values()))
    described = recognize(generator, images, MADE_UP, category="thing")
    judge(items, "with descriptions", described, list(MADE_UP_OF.values()))


def opinions(generator: Generator) -> None:
    """Sentiment of texts in pictures."""
    answers = [label for label, texts in OPINIONS.items() for _ in texts]
    images = [render_text(text) for texts in OPINIONS.values() for text in texts]
    items = "twenty opinions, drawn as pictures"
    judge(items, "direct", classify_sentiment(generator, images), answers)
    slowly = choose_step_by_step(generator, images, SENTIMENT_QUESTION, SENTIMENTS)
    judge(items, "chain of thought", slowly, answers)


def shots(generator: Generator) -> None:
    """Classification of drawn shapes with few-shot examples."""
    panels = {
        (shape, size, colour): Image(draw_panel(Panel(1, size, shape, colour)), f"{name} {size}, {colour}")
        for shape, name in SHAPES.items()
        for size in (1, 2, 3, 4, 5)
        for colour in (2, 3, 4)
    }
    pool = {key: image for key, image in panels.items() if key[2] == 3}
    asked = {key: image for key, image in panels.items() if key[2] != 3}
    for k in (0, 1, 2):
        examples = k_shot(list(pool.values()), [SHAPES[shape] for shape, _, _ in pool], k)
        found = classify(generator, list(asked.values()), list(SHAPES.values()), examples=examples)
        answers = [SHAPES[shape] for shape, _, _ in asked]
        judge("thirty drawn shapes of three kinds", f"{k}-shot", found, answers)


def main() -> None:
    """Print every task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", default="mini", help="plugin name")
    args = parser.parse_args()
    generator = plugins.create("generator", args.generator, {})
    photos = {image.id: image for image in photographs() if image.id is not None}
    print(f"Generator: `{generator.fingerprint}`")
    writing(generator, photos)
    head("Classification", "items", "way", "result", "P(right)")
    recognition(generator, photos)
    opinions(generator)
    shots(generator)


if __name__ == "__main__":
    main()
