"""Any image-text-to-text model of transformers as a generator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from zsqretrieval._util.checks import check_counts, check_sequence
from zsqretrieval._util.torch import (
    DTYPES,
    FromPretrained,
    add_tensors,
    import_transformers,
    resolve_device,
    tokenizer_facts,
    without_origin,
)
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.checked import check_pairs, check_sampling
from zsqretrieval.generators.engine.batching import plan_batches, run_batches
from zsqretrieval.generators.engine.likelihood import ENGINE, check_finite, log_softmax_of, logits_of
from zsqretrieval.generators.vlm.chat_format import ModelInputs, Reader, collate, has_chat_template
from zsqretrieval.generators.vlm.families import family_of
from zsqretrieval.generators.vlm.load_check import check_scores
from zsqretrieval.generators.vlm.loading import (
    forward_options,
    hidden_behind,
    is_encoder_decoder,
    load,
    prepare,
    resolve,
    special_tokens,
    watched_head,
)
from zsqretrieval.types import Context, LogLikelihood, Progress

_WINDOW = 8  # batches whose images are in memory at once

T = TypeVar("T")


class VLMGenerator(FromPretrained):
    """A :class:`~zsqretrieval.protocols.Generator` over any image-text-to-text model of transformers.

    Make one with :meth:`from_pretrained`. In float32 the batch size and the order of the pairs change a
    token's log-probability by at most 1e-4; in 16 bits, by the rounding of the model.

    Args:
        model: the model, on its device.
        processor: its processor.
        chat: whether a context becomes the user's turn of a conversation and its continuation the beginning
            of the assistant's; None to do so if the processor or its tokenizer has a chat template.
        chat_template_kwargs: variables for the chat template, such as ``{"enable_thinking": False}``.
        token_budget: most tokens in a batch, padding and images included.
        config: the arguments of :meth:`from_pretrained` that rebuild this generator.

    Raises:
        InvalidInputError: the model's family cannot be scored; ``chat`` or ``chat_template_kwargs`` without a
            chat template; or its prompts cannot be used, for instance because it opens a thought.

    Special tokens in a text are letters. :meth:`show_prompt` shows what the model reads.
    """

    _settings = ("name_or_path", "dtype", "chat", "chat_template_kwargs", "token_budget", "revision")
    _required = ("name_or_path",)
    safe_settings: ClassVar[Mapping[str, Any]] = {
        "dtype": (None, *DTYPES),
        "chat": (None, False, True),
        "token_budget": range(2**20),
        "revision": (None,),
    }

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        chat: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        token_budget: int = 8192,
        config: Mapping[str, Any],
    ) -> None:
        check_counts(token_budget=token_budget)
        self._model = model.eval()
        self._processor = processor
        self._config = dict(config)
        self._token_budget = token_budget
        self._family = family_of(model.config.model_type)
        chat = has_chat_template(processor, self._family) if chat is None else chat
        self._encoder_decoder = is_encoder_decoder(model.config)
        self._reader = Reader(
            processor, model.config, self._family, self._encoder_decoder, chat, chat_template_kwargs or {}
        )
        self._pad, self._start, self._ends = special_tokens(model, processor.tokenizer)
        self._options = forward_options(model)
        prepare(model)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: str | None = None,
        device: str | None = None,
        chat: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        token_budget: int = 8192,
        revision: str | None = None,
        self_check: bool = True,
    ) -> Self:
        """Load a model with its processor, and check that it can be scored.

        Args:
            name_or_path: a folder of ``save_pretrained``, or a name on the Hugging Face hub, downloaded when
                not cached. A repository's own code is never run.
            dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; None for the checkpoint's.
            device: ``"cuda"``, ``"mps"``, ``"cpu"``, ...; None takes that of ``ZSQ_DEVICE``, else the first
                available of these three.
            chat: as in the class.
            chat_template_kwargs: as in the class.
            token_budget: as in the class.
            revision: branch, tag or commit on the hub; None for the newest.
            self_check: run four small forward passes, and refuse the model if a later token changes an
                earlier one's log-probability, if another image changes nothing, or if padding changes
                something. :func:`zsqretrieval.testing.check_generator` checks much more.

        Raises:
            WeightsError: the model cannot be found or downloaded, or its weights are damaged, incomplete or
                of another shape.
            InvalidInputError: it is not an image-text-to-text model, its family cannot be scored or fails the
                check, or a setting is wrong.
            MissingDependencyError: its processor needs another package; names it.
        """
        if dtype is not None and dtype not in DTYPES:
            raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)} or None, not {dtype!r}")
        target = resolve_device(device)
        name = resolve(name_or_path)
        model, processor = load(name, dtype, revision)
        config = {
            "name_or_path": name,
            "dtype": dtype,
            "chat": chat,
            "chat_template_kwargs": chat_template_kwargs and dict(chat_template_kwargs),
            "token_budget": token_budget,
            "revision": revision,
        }
        generator = cls(
            model.to(target), processor, chat=chat, chat_template_kwargs=chat_template_kwargs,
            token_budget=token_budget, config=config,
        )  # fmt: skip
        if self_check:
            check_scores(generator, name)
        return generator

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, architecture, processor, tokenizer, dtype, prompt, engine; not the device.

        Computed on first use, from all weights.
        """
        settings = {
            "engine": ENGINE,
            "model": self._model.config.to_dict(),
            "processor": self._processor.__class__.__name__,
            "images": self._processor.image_processor.to_dict(),
            "template": self._reader.template and self._reader.template.describe(),
        }
        digest = hashlib.sha256()
        digest.update(json.dumps(without_origin(settings), sort_keys=True, default=str).encode())
        digest.update(json.dumps(tokenizer_facts(self._processor.tokenizer), sort_keys=True).encode())
        add_tensors(digest, self._model.state_dict())
        return digest.hexdigest()

    def log_likelihood(
        self,
        contexts: Sequence[Context],
        continuations: Sequence[str],
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[LogLikelihood]:
        """Score n pairs; see :meth:`zsqretrieval.protocols.Generator.log_likelihood`.

        A continuation that begins without a space gets the white space that this family has between prompt
        and answer. The images of 8 batches are in memory at once.

        Raises:
            InvalidInputError: as in the protocol; or the family cannot keep a context's order.
            MismatchError: a context contains an image state; this class has none.
            ImageError: an image cannot be decoded; names it.
        """
        check_pairs(contexts, continuations)
        answers = [
            self._reader.continuation(text, f"continuation {i}") for i, text in enumerate(continuations)
        ]
        found = self._run(
            "scoring",
            contexts,
            [len(answer) for answer in answers],
            lambda prompts, rows: self._score(prompts, [answers[row] for row in rows]),
            batch_size=batch_size,
            progress=progress,
        )
        shown = map(self._reader.shown, answers)
        return [LogLikelihood(tokens, one) for tokens, one in zip(shown, found, strict=True)]

    def generate(
        self,
        contexts: Sequence[Context],
        *,
        n: int = 1,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int | None = None,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[list[str]]:
        """Continue each context; see :meth:`zsqretrieval.protocols.Generator.generate`.

        Of the checkpoint's generation settings (penalties, forbidden repeats, sampling) only the end tokens
        are used. Every text has its own random stream, seeded by ``seed`` and the positions of context and
        text, so the batch size does not change the texts. ``progress`` is called after each batch with
        ``"generating"`` and the number of texts.

        Raises:
            InvalidInputError, MismatchError, ImageError: as :meth:`log_likelihood`.
        """
        check_sequence(contexts, "contexts")
        check_sampling(n, max_new_tokens, temperature, seed)
        entropy = np.random.SeedSequence(seed).entropy
        draws = n if temperature > 0 else 1

        def write(prompts: Sequence[ModelInputs], rows: Sequence[int]) -> list[str]:
            seeds = [_stream(entropy, *divmod(row, draws)) for row in rows]
            sampler = _Sampler(temperature, seeds) if temperature > 0 else None
            return self._continue(prompts, max_new_tokens, sampler)

        more = [max_new_tokens] * len(contexts)
        texts = self._run(
            "generating", contexts, more, write, draws=draws, batch_size=batch_size, progress=progress
        )
        return [texts[i * draws : (i + 1) * draws] * (n // draws) for i in range(len(contexts))]

    def show_prompt(self, context: Context) -> str:
        """The text of the tokens that the model reads of a context, special ones included.

        A run of n equal special tokens, such as those of an image, is written once, followed by ``[x n]``.

        Raises:
            InvalidInputError, MismatchError, ImageError: as :meth:`log_likelihood`.
        """
        return self._reader.show(self._reader.prompt(context, "the context"))

    def _run(
        self,
        step: str,
        contexts: Sequence[Context],
        more: Sequence[int],
        compute: Callable[[list[ModelInputs], list[int]], list[T]],
        *,
        draws: int = 1,
        batch_size: int,
        progress: Progress | None,
    ) -> list[T]:
        """Results of all rows, computed in batches; row i * draws + d is draw d of context i.

        ``more[i]`` tokens follow context i.
        """
        check_counts(batch_size=batch_size)
        generate = step == "generating"
        found: dict[int, T] = {}
        for start in range(0, len(contexts), _WINDOW * batch_size):
            window = range(start, min(start + _WINDOW * batch_size, len(contexts)))
            prompts = self._read(contexts, window)
            for i in window:
                self._check_length(prompts[i], more[i], f"{'context' if generate else 'pair'} {i}")
            rows = {i * draws + d: prompts[i] for i in window for d in range(draws)}

            def one_batch(batch: list[int], rows: Mapping[int, ModelInputs] = rows) -> None:
                found.update(zip(batch, compute([rows[row] for row in batch], batch), strict=True))

            batches = self._plan(rows, {row: more[row // draws] for row in rows}, batch_size, generate)
            total = len(contexts) * draws
            run_batches(step, batches, one_batch, _over_all(progress, start * draws, total))
        return [found[row] for row in range(len(contexts) * draws)]

    # -- inputs ------------------------------------------------------------------------------------------

    def _read(self, contexts: Sequence[Context], window: range) -> dict[int, ModelInputs]:
        """The inputs of a window; equal contexts are converted once."""
        read: dict[object, ModelInputs] = {}
        found = {}
        for i in window:
            key = _identity(contexts[i])
            if key not in read:
                read[key] = self._reader.prompt(contexts[i], f"context {i}")
            found[i] = read[key]
        return found

    def _check_length(self, prompt: ModelInputs, more: int, name: str) -> None:
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        needed = max(len(prompt), more) if self._encoder_decoder else len(prompt) + more
        if limit is not None and needed > limit:
            raise InvalidInputError(
                f"{name} needs {needed} tokens ({len(prompt)} of context with its images, {more} after it), "
                f"and this {self._family.name} model reads {limit}; shorten it, or show fewer or smaller "
                "images"
            )

    def _plan(
        self,
        prompts: Mapping[int, ModelInputs],
        more: Mapping[int, int],
        batch_size: int,
        generate: bool,
    ) -> list[list[int]]:
        """Batches of keys of ``prompts``, each of one shape."""
        one_length = generate and not self._family.pads_to_generate
        kinds: dict[object, list[int]] = {}
        for key, prompt in prompts.items():
            kinds.setdefault((prompt.shape, one_length and len(prompt)), []).append(key)
        return [
            [keys[position] for position in batch]
            for keys in kinds.values()
            for batch in plan_batches(
                [len(prompts[key]) + more[key] for key in keys],
                batch_size=batch_size if self._family.batched else 1,
                token_budget=self._token_budget,
            )
        ]

    def _collate(self, prompts: Sequence[ModelInputs]) -> dict[str, torch.Tensor]:
        # an encoder counts positions from the first column, a decoder continues after the last
        side = "right" if self._encoder_decoder else "left"
        place = {"device": self._model.device, "dtype": self._model.dtype}
        batch = collate(prompts, pad=self._pad, side=side, **place)
        if self._family.layout and not prompts[0].images:
            wanted = self._family.layout.without_images(self._model.config)
            batch |= {name: torch.zeros(shape, **place) for name, shape in wanted.items()}
        return batch

    # -- the model ---------------------------------------------------------------------------------------

    def _score(
        self, prompts: Sequence[ModelInputs], answers: Sequence[list[int]]
    ) -> list[NDArray[np.float32]]:
        """Log-probability of every token of every answer: float32 [T] each."""
        options = dict(self._options)
        if self._encoder_decoder:
            batch = self._collate(prompts)
            batch |= _decoder_inputs(answers, self._start, self._pad, self._model.device)
            spans = [slice(len(answer)) for answer in answers]
        else:
            pairs = zip(prompts, answers, strict=True)
            batch = self._collate([prompt.followed_by(answer, self._family) for prompt, answer in pairs])
            if "logits_to_keep" in options:
                options["logits_to_keep"] = 1 + max(map(len, answers))
            # the token before predicts the token
            spans = [slice(-1 - len(answer), -1) for answer in answers]
        with torch.inference_mode():
            with watched_head(self._model) as seen:
                logits = self._model(**batch, **options).logits  # [B, tokens kept, V]
            hidden = hidden_behind(logits, seen)  # [B, tokens kept, D]
            return [
                self._of_tokens(answer, logits[b, span], None if hidden is None else hidden[b, span])
                for b, (span, answer) in enumerate(zip(spans, answers, strict=True))
            ]

    def _of_tokens(
        self, ids: list[int], logits: torch.Tensor, hidden: torch.Tensor | None
    ) -> NDArray[np.float32]:
        """Log-probabilities of T tokens, float32 [T], from logits [T, V] and hidden states [T, D]."""
        tokens = torch.tensor(ids, device=logits.device)
        exact = None
        if hidden is not None:
            exact = logits_of(hidden, self._model.get_output_embeddings(), tokens)
        found = log_softmax_of([logits.to(torch.float32, copy=True)], tokens, exact).cpu().numpy()
        check_finite(found, logits.dtype)
        return found

    def _continue(self, prompts: Sequence[ModelInputs], limit: int, sampler: _Sampler | None) -> list[str]:
        hf = import_transformers()
        batch = self._collate(prompts)
        settings = hf.GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            pad_token_id=self._pad,
            eos_token_id=list(self._ends) or None,
            decoder_start_token_id=self._start,
        )
        with torch.inference_mode():
            out = self._model.generate(
                **batch,
                generation_config=settings,
                logits_processor=hf.LogitsProcessorList([] if sampler is None else [sampler]),
            )
        n = batch["input_ids"].shape[1]
        if self._encoder_decoder:
            out = out[:, 1:]
        elif torch.equal(out[:, :n], batch["input_ids"]):  # some families return the prompt too
            out = out[:, n:]
        return [self._reader.text(self._until_end(row)) for row in out.tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        return ids[: next((i for i, one in enumerate(ids) if one in self._ends), len(ids))]


class _Sampler:
    """Samples the next token of every row from its own random stream.

    The largest of logits / temperature plus Gumbel noise is a sample of their softmax (Gumbel, 1954);
    transformers' greedy decoding then takes the largest.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self._temperature = temperature
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add the noise to logits, float32 [B, V]."""
        waits = [torch.empty(scores.shape[-1]).exponential_(generator=stream) for stream in self._streams]
        return scores / self._temperature - torch.stack(waits).log().to(scores.device)


def _identity(context: Context) -> object:
    """Equal for contexts of equal texts and the same image records."""
    if isinstance(context, str) or not isinstance(context, Sequence):
        return id(context)  # refused by the reader
    return tuple(segment if isinstance(segment, str) else id(segment) for segment in context)


def _over_all(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress over all windows, for the batches of one window."""
    return None if progress is None else lambda name, done, _: progress(name, before + done, total)


def _stream(entropy: Any, context: int, draw: int) -> int:
    """The seed of one text's random stream."""
    sequence = np.random.SeedSequence(entropy, spawn_key=(context, draw))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _decoder_inputs(
    answers: Sequence[list[int]], start: int | None, pad: int, device: Any
) -> dict[str, torch.Tensor]:
    """The start token and each answer without its last token, padded on the right: int64 [B, T]."""
    rows = [torch.tensor([start, *answer[:-1]]) for answer in answers]
    return {
        "decoder_input_ids": pad_sequence(rows, True, pad).to(device),
        "decoder_attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True).to(device),
    }
