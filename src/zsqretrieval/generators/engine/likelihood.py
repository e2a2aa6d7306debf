"""The scoring engine: log P(continuation | context) under any language model that reads embeddings.

A context is a tuple of ints in reading order: an entry >= 0 is a token; an entry -1 - r is row r of the
call's image states, laid end to end. So contexts that begin with the same image have a common prefix.
:mod:`zsqretrieval.generators.engine.interleaved` makes these tuples. The engine saves computation:

- The model reads a common prefix once; its keys and values are kept until the last of its pairs is scored.
- Pairs are batched by token budget and padded on the right, and positions count from the start of each row,
  so that batching changes a score only by rounding.
- The last token of a continuation is not read, and only positions that predict a token of the continuation go
  through the vocabulary matrix.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear, pad
from transformers import DynamicCache

from zsqretrieval.errors import WeightsError
from zsqretrieval.generators.engine.batching import plan_batches, run_batches
from zsqretrieval.types import Progress

# Tokens of the vocabulary in one part on a CPU. Their logits stay in its cache until they are summed: a third
# less time for the mini generator's vocabulary.
_CACHED = 2048
Tokens: TypeAlias = tuple[int, ...]
"""A context or a continuation: tokens (>= 0) and rows of image states (-1 - row), in reading order."""

ENGINE = 2
"""Version of the computation of log-probabilities; part of the fingerprints of generators that use it."""

TOKEN_BUDGET = 4096
"""Most positions computed together, padding included; a batch of 16 stays below it up to 256 tokens."""

# Positions that go through the vocabulary matrix at once: 133 MB of float32 logits at V = 65,037 in one part.
_HEAD_ROWS = 512


class LanguageModel(Protocol):
    """A causal language model that reads embeddings; D wide, V tokens. Called in inference mode only."""

    @property
    def max_tokens(self) -> int:
        """Context length in positions, those of images included."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computation."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Look up tokens: int64 [B, T] to a new tensor [B, T, D], as :meth:`forward` takes it."""
        ...

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: DynamicCache | None,
    ) -> Tensor:
        """Read T positions after the P in the cache.

        Args:
            inputs_embeds: [B, T, D]; token embeddings, image states in their places.
            attention_mask: int64 [B, P + T], 0 at padding; None when there is none.
            position_ids: int64 [B, T], each position's true index in its own text, from 0.
            cache: holds keys and values of P >= 0 positions for B rows; those of the T are appended in place.
                None: P = 0, and nothing is kept.

        Returns:
            The last hidden states [B, T, D], as :meth:`logits` takes them.
        """
        ...

    def logits(self, hidden: Tensor) -> Iterable[Tensor]:
        """Unnormalised log-probabilities of the next token, from contiguous [N, D].

        New tensors [N, v], whose columns are those of [N, V] in order: all of them, or parts that fit into
        the cache of a CPU.
        """
        ...

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Those of one token for each row, computed in float32: [N, D] and int64 [N] to float32 [N].

        A logit of 10 in bfloat16 is a multiple of 1/16: yes and no would differ by sixteenths, or tie.
        :func:`logits_of` computes it for a linear layer.
        """
        ...


class States(Protocol):
    """The image states of one call: computed when first needed, dropped after the last use."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows of all states laid end to end: int64 [n] on the CPU to [n, D] on the model's device."""
        ...

    def name(self, tokens: Tokens) -> Hashable:
        """A key for ``tokens`` that outlives the call: equal for equal tokens and equal images."""
        ...

    def release(self, contexts: Iterable[Tokens]) -> None:
        """Mark contexts as scored, once per occurrence; they will not be read again."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """The keys and values of one row of P positions."""

    values: Tensor  # [layers, 2, heads, P, D / heads]

    def __len__(self) -> int:
        return self.values.shape[-2]


class Prefixes:
    """Least-recently-used cache of prefixes' keys and values; a capacity of 0 bytes keeps nothing."""

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = capacity
        self._kept: OrderedDict[Hashable, Past] = OrderedDict()
        self._bytes = 0

    def get(self, name: Hashable) -> Past | None:
        """The past of that name, or None."""
        if (past := self._kept.get(name)) is not None:
            self._kept.move_to_end(name)
        return past

    def put(self, name: Hashable, past: Past) -> None:
        """Keep a past and drop the oldest beyond the capacity; a past larger than that is not kept."""
        if name in self._kept or past.values.nbytes > self.capacity:
            return
        self._kept[name] = past
        self._bytes += past.values.nbytes
        while self._bytes > self.capacity:
            self._bytes -= self._kept.popitem(last=False)[1].values.nbytes

    def fetch(self, model: LanguageModel, heads: Sequence[Tokens], states: States) -> dict[Tokens, Past]:
        """The pasts of distinct prefixes; the model reads the missing ones in one batch."""
        names = [states.name(head) if self.capacity else None for head in heads]
        found = {head: self.get(name) for head, name in zip(heads, names, strict=True)}
        if missing := [head for head, past in found.items() if past is None]:
            found.update(zip(missing, read(model, missing, states, remember=True).pasts(), strict=True))
        pasts = {head: past for head, past in found.items() if past is not None}
        for head, name in zip(heads, names, strict=True):
            self.put(name, pasts[head])
        return pasts


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The model's output for a batch of rows."""

    hidden: Tensor  # last hidden states [B, T, D] of the new positions; undefined beyond a row's length
    lengths: list[int]  # number of new positions of each row
    mask: Tensor  # bool [B, P + T], on the CPU: positions of the cache that are not padding
    cache: DynamicCache | None  # keys and values, padded as in ``mask``; None unless ``remember`` was set

    def pasts(self) -> list[Past]:
        """The past of each row, without padding."""
        assert self.cache is not None
        cached: Any = self.cache.layers
        layers = [torch.stack((layer.keys, layer.values)) for layer in cached]
        values = torch.stack(layers)  # [layers, 2, B, heads, P + T, D / heads]
        return [Past(values[:, :, row][..., kept, :]) for row, kept in enumerate(self.mask)]


def read(
    model: LanguageModel,
    feeds: Sequence[Tokens],
    states: States,
    *,
    pasts: Sequence[Past] = (),
    remember: bool = False,
) -> Reading:
    """Read B rows, each not empty and after its own past, if any; keep keys and values if ``remember``."""
    device = model.device
    lengths = [len(feed) for feed in feeds]
    # On the CPU, so that a GPU is not waited for before the batch is on its way.
    before = torch.tensor([len(past) for past in pasts] or [0] * len(feeds))
    P, T = int(before.max()), max(lengths)
    ids = torch.tensor([[*feed, *[0] * (T - len(feed))] for feed in feeds])  # [B, T]
    steps = torch.arange(T)
    mask = torch.cat(
        [torch.arange(P) < before[:, None], steps < torch.tensor(lengths)[:, None]], dim=1
    )  # [B, P + T]
    positions = (before[:, None] + steps).clamp(max=model.max_tokens - 1)  # padding may lie beyond the last
    embeds = model.embed(ids.clamp(min=0).to(device))  # [B, T, D]
    seen = (ids < 0).flatten()
    if seen.any():
        places = seen.nonzero()[:, 0]
        given = states(-1 - ids.flatten()[places]).to(embeds)
        embeds.view(-1, embeds.shape[-1]).index_copy_(0, places.to(device), given)
    cache = _join(pasts, P) if pasts else DynamicCache() if remember else None
    hidden = model.forward(
        embeds, None if mask.all() else mask.long().to(device), positions.to(device), cache
    )
    return Reading(hidden, lengths, mask, cache if remember else None)


def _join(pasts: Sequence[Past], P: int) -> DynamicCache:
    """One cache of all rows, padded on the right."""
    values = torch.stack([pad(past.values, (0, 0, 0, P - len(past))) for past in pasts], dim=2)
    return DynamicCache([(keys, values) for keys, values in values])  # each [B, heads, P, D / heads]


def log_probs_of(
    model: LanguageModel, reading: Reading, targets: Sequence[tuple[int, Tokens]]
) -> list[NDArray[np.float32]]:
    """Log-probabilities of the tokens that the last positions of rows predict.

    For each target (row, tokens), the last ``len(tokens)`` positions of the row predict these tokens; returns
    float32 [tokens], in nats.

    Raises:
        WeightsError: a log-probability is not finite.
    """
    B, T, D = reading.hidden.shape
    device = reading.hidden.device
    places = [
        torch.arange(row * T + reading.lengths[row] - len(target), row * T + reading.lengths[row])
        for row, target in targets
    ]
    # One contiguous [N, D]: a linear layer on a strided slice copies the vocabulary matrix for every row.
    hidden = reading.hidden.reshape(B * T, D).index_select(0, torch.cat(places).to(device))
    tokens = torch.tensor([token for _, target in targets for token in target], device=device)
    parts = []
    for start in range(0, len(tokens), _HEAD_ROWS):
        part = slice(start, start + _HEAD_ROWS)
        exact = None if model.dtype == torch.float32 else model.logits_of(hidden[part], tokens[part])
        parts.append(log_softmax_of(model.logits(hidden[part]), tokens[part], exact))
    log_probs = torch.cat(parts).cpu().numpy()
    check_finite(log_probs, model.dtype)
    ends = np.cumsum([len(target) for _, target in targets])[:-1]
    return [np.ascontiguousarray(part, np.float32) for part in np.split(log_probs, ends)]


def check_finite(log_probs: NDArray[np.float32], dtype: torch.dtype) -> None:
    """Raise WeightsError if a log-probability is not finite."""
    if not np.isfinite(log_probs).all():
        raise WeightsError(
            f"the model computed log-probabilities that are not finite, in {dtype}: its weights are "
            "damaged, or its numbers overflow that dtype; try float32"
        )


def log_softmax_of(parts: Iterable[Tensor], tokens: Tensor, exact: Tensor | None = None) -> Tensor:
    """The log-probability of one token for each row of logits, float32 [N].

    ``parts`` [N, v], overwritten, are the columns of the logits in order, as :meth:`LanguageModel.logits`
    gives them. ``exact``, float32 [N], has the logits of these tokens before they were rounded to 16 bits.
    """
    own, total, start = torch.zeros(()), torch.full((), -torch.inf), 0
    for part in parts:
        logits = part.float()
        places = (tokens - start).clamp(0, logits.shape[1] - 1)
        # a token is in the last part that begins before it
        own = torch.where(tokens >= start, logits.gather(1, places[:, None])[:, 0], own)
        largest = logits.amax(dim=1, keepdim=True)
        # log-sum-exp in place: torch's own allocates temporaries, which takes longer than the computation
        total = torch.logaddexp(total, logits.sub_(largest).exp_().sum(dim=1).log() + largest[:, 0])
        start += logits.shape[1]
    if exact is not None:
        # replace the rounded logit in the total by the exact one
        total = total + torch.log1p(torch.exp(exact - total) - torch.exp(own - total))
        own = exact
    return (own - total).clamp(max=0)  # rounding may leave a certain token above 0


def logits_in_parts(features: Tensor, head: torch.nn.Linear) -> Iterator[Tensor]:
    """All logits of a linear layer, for inputs [N, D]: see :meth:`LanguageModel.logits`."""
    bias = head.bias
    size = _CACHED if features.device.type == "cpu" else len(head.weight)
    for n, weight in enumerate(torch.split(head.weight, size)):
        yield linear(features, weight, None if bias is None else bias[n * size : (n + 1) * size])


def logits_of(features: Tensor, head: torch.nn.Linear, tokens: Tensor) -> Tensor:
    """Single logits of a linear layer: inputs [N, D] and tokens [N] to float32 [N]."""
    found = (features.float() * head.weight[tokens].float()).sum(dim=1)
    return found if head.bias is None else found + head.bias[tokens].float()


def score_pairs(
    model: LanguageModel,
    contexts: Sequence[Tokens],
    continuations: Sequence[Tokens],
    states: States,
    *,
    prefixes: Prefixes,
    batch_size: int,
    token_budget: int = TOKEN_BUDGET,
    progress: Progress | None = None,
) -> list[NDArray[np.float32]]:
    """Score n pairs, each by its cheapest exact route.

    A context that shares nothing with another is read together with its continuation. Contexts that are equal
    up to their last image share their common prefix. Continuations of one context that differ only in their
    last token, such as yes and no, are one row, because that token is not read. With room in ``prefixes``,
    contexts up to their last image are also kept for later calls.

    Contexts and continuations are not empty. ``batch_size`` limits the rows computed together,
    ``token_budget`` their positions. ``progress`` is called with ``"scoring"`` and the number of rows.

    Returns:
        For each pair float32 [len(continuation)]: log-probabilities in nats.
    """
    times = Counter(zip(contexts, continuations, strict=True))  # equal pairs are scored once
    endings: dict[tuple[Tokens, Tokens], list[Tokens]] = {}
    for context, text in times:
        endings.setdefault((context, text[:-1]), []).append(text)
    rows = list(endings)
    heads = _heads([context for context, _ in rows], persistent=prefixes.capacity > 0)
    lengths = [len(context) + len(begun) for context, begun in rows]
    needed, kept = Counter(heads), dict[Tokens, Past]()
    found: dict[tuple[Tokens, Tokens], NDArray[np.float32]] = {}

    def step(batch: list[int]) -> None:
        shared = [heads[i] for i in batch if heads[i]]
        for head in kept.keys() - set(shared):  # left by a batch that did not fit; its parts need fewer
            del kept[head]
        if missing := [head for head in dict.fromkeys(shared) if head not in kept]:
            kept.update(prefixes.fetch(model, missing, states))
        feeds = [sum(rows[i], ())[len(heads[i]) :] for i in batch]
        reading = read(model, feeds, states, pasts=[kept[head] for head in shared])
        targets = [(place, text) for place, i in enumerate(batch) for text in endings[rows[i]]]
        pairs = [(rows[batch[place]][0], text) for place, text in targets]
        found.update(zip(pairs, log_probs_of(model, reading, targets), strict=True))
        needed.subtract(shared)
        for head in [head for head in kept if not needed[head]]:
            del kept[head]
        states.release(pair[0] for pair in pairs for _ in range(times[pair]))

    batches = [
        [members[i] for i in batch]
        for members in (
            [i for i, head in enumerate(heads) if not head],
            [i for i, head in enumerate(heads) if head],
        )
        for batch in plan_batches(
            [lengths[i] for i in members],
            batch_size=batch_size,
            token_budget=token_budget,
            groups=[heads[i] for i in members],
        )
    ]
    with torch.inference_mode():
        run_batches("scoring", batches, step, progress)
    return [found[pair] for pair in zip(contexts, continuations, strict=True)]


def _heads(contexts: Sequence[Tokens], *, persistent: bool) -> list[Tokens]:
    """The shared prefix of each context, or ().

    Contexts that are equal up to their last image share their longest common prefix.
    """
    stems = [up_to_last_image(context) for context in contexts]
    if persistent:
        return stems
    groups: dict[Tokens, list[Tokens]] = {}
    for stem, context in zip(stems, contexts, strict=True):
        groups.setdefault(stem, []).append(context[:-1])
    shared = {
        stem: _common_beginning(members) if len(members) > 1 else () for stem, members in groups.items()
    }
    return [shared[stem] for stem in stems]


def up_to_last_image(context: Tokens) -> Tokens:
    """The context up to and including its last image; all of it where there is none.

    It never includes the context's last token, which predicts the first token of the continuation.
    """
    ends = [i + 1 for i, token in enumerate(context) if token < 0]
    return context[: min(ends[-1] if ends else len(context), len(context) - 1)]


def _common_beginning(rows: Sequence[Tokens]) -> Tokens:
    first, last = min(rows), max(rows)  # the prefix that these two share, all rows share
    unlike = (i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(unlike, len(first))]
