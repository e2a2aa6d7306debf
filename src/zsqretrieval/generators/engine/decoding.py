"""Greedy and sampled decoding."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zsqretrieval.generators.engine.batching import plan_batches, run_batches
from zsqretrieval.generators.engine.likelihood import TOKEN_BUDGET, LanguageModel, States, Tokens, read
from zsqretrieval.types import Progress


def continue_contexts(
    model: LanguageModel,
    contexts: Sequence[Tokens],
    states: States,
    *,
    n: int,
    max_new_tokens: int,
    temperature: float,
    seed: int | None,
    stop: Collection[int],
    batch_size: int,
    progress: Progress | None = None,
) -> list[list[Tokens]]:
    """Continue each context n times; contexts are not empty and shorter than the model's context length.

    A text ends before a token of ``stop``, after ``max_new_tokens``, or where the model's context is full.
    Every text has its own random stream, seeded by ``seed`` (None: at random), context and draw, so that a
    draw does not depend on its batch. ``temperature`` divides the logits; at 0 all n texts of a context are
    equal. ``progress`` is called after each batch with ``"generating"`` and the number of texts.
    """
    draws = n if temperature > 0 else 1
    entropy = secrets.randbits(64) if seed is None else seed
    found: dict[int, Tokens] = {}  # key i * draws + d: text d of context i

    def step(batch: list[int]) -> None:
        limits = [min(max_new_tokens, model.max_tokens - len(contexts[text // draws])) for text in batch]
        streams = [np.random.default_rng([entropy, *divmod(text, draws)]) for text in batch]
        places: dict[int, int] = {}  # row of each distinct context in the reading
        rows = [places.setdefault(text // draws, len(places)) for text in batch]
        written = _continue(
            model, [contexts[i] for i in places], states, rows, limits, temperature, streams, stop
        )
        found.update(zip(batch, written, strict=True))
        states.release(contexts[text // draws] for text in batch if text % draws == draws - 1)

    batches = plan_batches(
        [min(len(context) + max_new_tokens, model.max_tokens) for context in contexts for _ in range(draws)],
        batch_size=batch_size,
        token_budget=TOKEN_BUDGET,
    )

    with torch.inference_mode():
        run_batches("generating", batches, step, progress)
    return [[found[i * draws + d] for d in range(draws)] * (n // draws) for i in range(len(contexts))]


def _continue(
    model: LanguageModel,
    contexts: Sequence[Tokens],
    states: States,
    rows: Sequence[int],
    limits: Sequence[int],
    temperature: float,
    streams: Sequence[np.random.Generator],
    stop: Collection[int],
) -> list[Tokens]:
    """Decode a batch of texts; text b continues ``contexts[rows[b]]``."""
    reading = read(model, contexts, states, remember=True)
    cache, device = reading.cache, reading.hidden.device
    assert cache is not None
    of = torch.tensor(rows, device=device)
    cache.batch_select_indices(of)
    position = torch.tensor(reading.lengths, device=device)[of]
    hidden, mask = reading.hidden[of, position - 1], reading.mask.to(device)[of]  # [B, D] and [B, P]
    texts: list[list[int]] = [[] for _ in rows]
    alive = list(range(len(rows)))  # text of each row of cache, hidden, mask and position
    while True:
        logits = torch.cat(list(model.logits(hidden)), dim=1)
        tokens = _choose(logits, temperature, [streams[text] for text in alive])
        going = []
        for row, (text, token) in enumerate(zip(alive, tokens, strict=True)):
            if token not in stop:
                texts[text].append(token)
                if len(texts[text]) < limits[text]:
                    going.append(row)
        if not going:
            return [tuple(text) for text in texts]
        if len(going) < len(alive):
            kept = torch.tensor(going, device=device)
            cache.batch_select_indices(kept)
            mask, position = mask[kept], position[kept]
            alive = [alive[row] for row in going]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        fed = torch.tensor([[texts[text][-1]] for text in alive], device=device)  # [B, 1]
        hidden = model.forward(
            model.embed(fed), None if mask.all() else mask.long(), position[:, None], cache
        )[:, 0]
        position = position + 1


def _choose(logits: Tensor, temperature: float, streams: Sequence[np.random.Generator]) -> list[int]:
    """The next token of each row, from logits [B, V]."""
    if temperature == 0:
        return [int(token) for token in logits.argmax(dim=1)]
    cumulated: NDArray[np.float64] = (
        (logits.float().cpu().double() / temperature).softmax(dim=1).cumsum(dim=1).numpy()
    )
    return [
        min(int(np.searchsorted(row, stream.random() * row[-1], side="right")), len(row) - 1)
        for row, stream in zip(cumulated, streams, strict=True)
    ]
