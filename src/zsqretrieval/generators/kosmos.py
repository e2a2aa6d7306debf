"""Kosmos (Huang et al., 2023, arXiv 2302.14045; Peng et al., 2023, arXiv 2306.14824), through transformers.

Kosmos-1's weights are not published. Kosmos-2 was initialised from them and keeps the architecture, so its
published weights are the default; docs/kosmos.md lists the differences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import Self

from zsqretrieval._util.letters import as_letters, marks_of
from zsqretrieval._util.torch import (
    DTYPES,
    FromPretrained,
    add_tensors,
    check_complete,
    import_transformers,
    loading,
    resolve_device,
    resolve_dtype,
    tokenizer_facts,
)
from zsqretrieval.data.images import decode, in_threads, trimmed
from zsqretrieval.errors import WeightsError
from zsqretrieval.generators.engine.decoder import Decoder
from zsqretrieval.generators.engine.interleaved import Frame, InterleavedGenerator
from zsqretrieval.generators.engine.likelihood import ENGINE
from zsqretrieval.types import Image

_DEFAULT = "microsoft/kosmos-2-patch14-224"
_OFFLINE = (
    f"With network, the repository {_DEFAULT} is downloaded once and cached. Offline, load it on a machine "
    "with network, write it with save_pretrained(folder), copy that here and name its path"
)
_FAMILY = "kosmos-2"  # model_type of its configuration
# Settings that change the results, for the fingerprint. Others may get new defaults in new versions of
# transformers.
_TEXT_SETTINGS = ("attention_heads", "activation_function", "layer_norm_eps", "scale_embedding")
_VISION_SETTINGS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size", "patch_size")
_PIXEL_SETTINGS = ("do_", "size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")


class Kosmos1Generator(FromPretrained, InterleavedGenerator):
    """Kosmos as an :class:`~zsqretrieval.protocols.ImageStates` generator.

    A context becomes Kosmos' input: ``<s>``, then texts and images in order, each image as ``<image>``, its
    64 latent tokens from the resampler, ``</image>``. A tag that a text contains is letters.

    Make one with :meth:`from_pretrained`.

    Args:
        model: a transformers ``Kosmos2ForConditionalGeneration``, on its device and in its dtype.
        processor: its ``Kosmos2Processor``.
        config: the arguments of :meth:`from_pretrained` that rebuild this generator.
        grounding: whether ``<grounding>`` stands before the first text of every context, which makes the
            model name places in the picture.
        prefix_cache_bytes: memory for keys and values between calls; an image takes 12.6 MiB in 16 bits.
    """

    _settings = ("name", "dtype", "grounding", "prefix_cache_bytes")
    safe_settings: ClassVar[Mapping[str, Any]] = {
        "dtype": (None, *DTYPES),
        "grounding": (False, True),
        "prefix_cache_bytes": range(2**30),
    }

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        config: Mapping[str, Any],
        grounding: bool = False,
        prefix_cache_bytes: int = 0,
    ) -> None:
        self.model = model.eval()
        if model.device.type == "cpu":
            # As fast on a CPU as the fused kernel, and its order of summation hardly depends on the number of
            # positions: 16-bit scores with and without a kept prefix are much closer.
            model.text_model.set_attn_implementation("eager")
        # Latent queries attend to all positions, but transformers before 5.23 makes them causal in sdpa.
        model.image_to_text_projection.x_attn.is_causal = False
        self.processor = processor
        self._letters = as_letters(processor.tokenizer)
        self._tags = frozenset(marks_of(processor.tokenizer).values())
        self._config = dict(config)
        text, tokenizer, layers = model.config.text_config, processor.tokenizer, model.text_model.model
        frame = Frame(
            start=(text.bos_token_id,),
            before_image=(tokenizer.convert_tokens_to_ids(processor.boi_token),),
            after_image=(tokenizer.convert_tokens_to_ids(processor.eoi_token),),
            before_text=(tokenizer.convert_tokens_to_ids(processor.grd_token),) if grounding else (),
            stop=frozenset({text.eos_token_id, tokenizer.convert_tokens_to_ids(processor.eod_token)}),
        )
        super().__init__(
            Decoder(
                layers,
                layers.embed_tokens,  # the decoder scales them by sqrt(D)
                model.text_model.lm_head,
                max_tokens=text.max_position_embeddings,
                first_position=layers.embed_positions.padding_idx + 1,  # as fairseq counts
            ),
            frame,
            (model.config.latent_query_num, text.embed_dim),
            prefix_cache_bytes=prefix_cache_bytes,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = _DEFAULT,
        *,
        dtype: str | None = None,
        device: str | None = None,
        grounding: bool = False,
        prefix_cache_bytes: int = 0,
    ) -> Self:
        """Load a model with its tokenizer and preprocessing.

        Args:
            name: a hub repository, downloaded when not cached; or a folder of :meth:`save_pretrained`. Its
                own code is never run.
            dtype: of the computation: ``"float32"``, ``"bfloat16"`` or ``"float16"``. None takes bfloat16
                where the device has arithmetic for it (CUDA; CPUs with AMX or AVX512-BF16), else float32.
            device: ``"cuda"``, ``"mps"``, ``"cpu"``, ...; None takes that of ``ZSQ_DEVICE``, else the first
                available of these three.
            grounding: see the class.
            prefix_cache_bytes: see the class.

        Raises:
            InvalidInputError: an unknown dtype or device.
            WeightsError: the model cannot be found or downloaded, is incomplete, or is of another family.
            MissingDependencyError: transformers needs another package; names it.
        """
        target = resolve_device(device)
        dtype, torch_dtype = resolve_dtype(dtype, target)
        folder = Path(name).expanduser()
        source = str(folder.absolute()) if folder.is_dir() else str(name)
        with loading(f"Kosmos from {source}", source, _OFFLINE):
            model, processor = _load(source, torch_dtype)
        settings: dict[str, Any] = {"grounding": grounding, "prefix_cache_bytes": prefix_cache_bytes}
        config = {"name": source, "dtype": dtype, **settings}
        return cls(model.to(target), processor, config=config, **settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors), tokenizer and preprocessing for :meth:`from_pretrained`."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, dtype, tokenizer, preprocessing and engine; not the device.

        Computed on first use: a few seconds at full size.
        """
        config = self.model.config
        settings = {
            "text": {key: getattr(config.text_config, key) for key in _TEXT_SETTINGS},
            "vision": {key: getattr(config.vision_config, key) for key in _VISION_SETTINGS},
            "pixels": {
                key: value
                for key, value in self.processor.image_processor.to_dict().items()
                if key.startswith(_PIXEL_SETTINGS)
            },
            "engine": ENGINE,
            # without the location tags, which the processor adds on loading
            "tokenizer": {**tokenizer_facts(self.processor.tokenizer), "added_tokens": None},
            "frame": [self._frame.start, self._frame.before_image, self._frame.after_image],
        }
        if self._frame.before_text:
            settings["grounding"] = self._frame.before_text
        if self._squeezes:
            settings["long pictures"] = "squeezed"
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        text = self.model.text_model
        tied = text.lm_head.weight is text.model.embed_tokens.weight
        weights = dict(self.model.state_dict())
        if tied:
            del weights["text_model.lm_head.weight"]  # the token embedding again
        add_tensors(digest, weights)
        return digest.hexdigest()

    def _tokenize(self, text: str) -> Sequence[int]:
        ids: list[int] = self._letters(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _token_texts(self, tokens: Sequence[int]) -> tuple[str, ...]:
        pieces = self.processor.tokenizer.convert_ids_to_tokens(list(tokens))
        return tuple(piece.replace("\u2581", " ") for piece in pieces)  # SentencePiece's mark of a space

    def _detokenize(self, tokens: Sequence[int]) -> str:
        if not self._frame.before_text:  # without grounding, the tags of locations are no text
            tokens = [token for token in tokens if token not in self._tags]
        text: str = self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text.strip()

    def _see(self, images: Sequence[Image]) -> Tensor:
        pictures = in_threads(self._picture, images)
        made = self.processor.image_processor(pictures, return_tensors="pt")
        pixels = made.pixel_values.to(self._language.device, self._language.dtype)  # [n, 3, 224, 224]
        vision = self.model.vision_model
        seen = vision(pixels).last_hidden_state  # [n, 257, 1024]
        seen = normalize(vision.model.post_layernorm(seen), dim=-1)
        states: Tensor = self.model.image_to_text_projection(seen)[0]  # [n, 64, 2048]
        return states

    def _picture(self, image: Image) -> PILImage.Image:
        picture = decode(image)
        return picture if self._squeezes else trimmed(picture)

    @property
    def _squeezes(self) -> bool:
        """Whether the whole of any picture becomes a square, as with the published preprocessing."""
        return "height" in self.processor.image_processor.to_dict()["size"]


def _load(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    hf = import_transformers()
    own = {"trust_remote_code": False}
    family = hf.AutoConfig.from_pretrained(source, **own).model_type
    if family != _FAMILY:
        raise WeightsError(f"{source} is a {family} model, not Kosmos; try VLMGenerator")
    model, report = hf.Kosmos2ForConditionalGeneration.from_pretrained(
        source, dtype=dtype, output_loading_info=True, **own
    )
    check_complete(source, report)
    # Pillow resizes alike on every machine; torchvision, which may be missing, resizes differently.
    image_processor = hf.CLIPImageProcessorPil.from_pretrained(source)
    tokenizer = hf.AutoTokenizer.from_pretrained(source, **own)
    return model, hf.Kosmos2Processor(image_processor, tokenizer)
