"""Kosmos (Huang et al., 2023, arXiv 2302.14045; Peng et al., 2023, arXiv 2306.14824), through transformers.

Kosmos-1's own weights were never published. Kosmos-2 was initialised from them and keeps the architecture, so
its published weights are the default; docs/kosmos.md lists what differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import DynamicCache
from typing_extensions import Self

from zsqretrieval._util.checks import check_settings
from zsqretrieval._util.torch import resolve_device, resolve_dtype
from zsqretrieval._util.torchvision import ensure_importable
from zsqretrieval.data.images import decode
from zsqretrieval.errors import WeightsError
from zsqretrieval.generators.engine.interleaved import Frame, InterleavedGenerator
from zsqretrieval.generators.engine.likelihood import ENGINE, logits_of
from zsqretrieval.generators.loading import check_complete, missing_package, tokenizer_facts
from zsqretrieval.types import Image

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["Kosmos1Generator"]

_DEFAULT = "microsoft/kosmos-2-patch14-224"
_FAMILY = "kosmos-2"  # as configurations call it
_SETTINGS = ("name", "dtype", "prefix_cache_bytes")
# What the numbers depend on besides the weights and their shapes; the rest of a configuration may change its
# defaults from one version of transformers to the next.
_TEXT_SETTINGS = ("attention_heads", "activation_function", "layer_norm_eps", "scale_embedding")
_VISION_SETTINGS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size", "patch_size")
_PIXEL_SETTINGS = ("do_", "size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
_DECODERS = 4  # threads; Pillow lets go of the interpreter lock
_LONGEST = 16  # sides ratio above which a picture is trimmed before it is resized


class Kosmos1Generator(InterleavedGenerator):
    """Kosmos as an :class:`~zsqretrieval.protocols.ImageStates` generator.

    A context is read as Kosmos reads it: ``<s>``, then texts and images in their order, each image as
    ``<image>``, the 64 latent tokens the resampler makes of it, ``</image>``. There is no ``<grounding>``,
    which would ask for locations; write it into a text to have it.

    Make one with :meth:`from_pretrained`.

    Args:
        model: a transformers ``Kosmos2ForConditionalGeneration``, on its device and in its dtype.
        processor: its ``Kosmos2Processor``.
        config: the arguments of :meth:`from_pretrained` that rebuild this generator.
        prefix_cache_bytes: memory for what was read of contexts in earlier calls; see
            :class:`~zsqretrieval.generators.engine.interleaved.InterleavedGenerator`. One image takes 12.6 MiB in
            16 bits at full size.

    Attributes:
        model: as given, in evaluation mode.
        processor: as given.
    """

    def __init__(
        self, model: Any, processor: Any, *, config: Mapping[str, Any], prefix_cache_bytes: int = 0
    ) -> None:
        self.model = model.eval()
        if model.device.type == "cpu":
            # As fast here as the fused kernel, and it adds up in an order that hardly depends on how many
            # positions are read at once: 16-bit numbers are much closer with and without a kept prefix.
            model.text_model.set_attn_implementation("eager")
        self.processor = processor
        self._config = dict(config)
        text, tokenizer = model.config.text_config, processor.tokenizer
        frame = Frame(
            start=(text.bos_token_id,),
            before_image=(tokenizer.convert_tokens_to_ids(processor.boi_token),),
            after_image=(tokenizer.convert_tokens_to_ids(processor.eoi_token),),
            stop=frozenset({text.eos_token_id, tokenizer.convert_tokens_to_ids(processor.eod_token)}),
        )
        super().__init__(
            _KosmosText(model.text_model),
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
        prefix_cache_bytes: int = 0,
    ) -> Self:
        """Load a model with its tokenizer and preprocessing.

        Args:
            name: a hub repository, downloaded when not cached; or a folder, as :meth:`save_pretrained`
                writes it.
            dtype: of the computation: ``"float32"``, ``"bfloat16"`` or ``"float16"``. None takes bfloat16
                where the device has arithmetic for it (CUDA; CPUs with AMX or AVX512-BF16), else float32.
            device: ``"cuda"``, ``"mps"``, ``"cpu"``, ...; None takes the first of these three there is.
            prefix_cache_bytes: see the class.

        Raises:
            InvalidInputError: an unknown dtype or device.
            WeightsError: the model is not here and cannot be downloaded, or is incomplete, or another one.
            MissingDependencyError: transformers needs another package for it; names it.
        """
        target = resolve_device(device)
        dtype, torch_dtype = resolve_dtype(dtype, target)
        folder = Path(name).expanduser()
        source = str(folder.absolute()) if folder.is_dir() else str(name)
        try:
            model, processor = _load(source, torch_dtype)
        except (MemoryError, WeightsError):
            raise
        except ImportError as error:
            raise missing_package(error, f"Kosmos from {source}") from error
        except Exception as error:  # transformers, huggingface_hub and safetensors raise what they like
            raise WeightsError(_explain(source, error)) from error
        config = {"name": source, "dtype": dtype, "prefix_cache_bytes": prefix_cache_bytes}
        return cls(model.to(target), processor, config=config, prefix_cache_bytes=prefix_cache_bytes)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors), tokenizer and preprocessing to a folder for :meth:`from_pretrained`.

        Raises:
            OSError: the disk refuses.
        """
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
            # but for the tags of locations, which the processor adds when it is loaded
            "tokenizer": {**tokenizer_facts(self.processor.tokenizer), "added_tokens": None},
            "frame": [self._frame.start, self._frame.before_image, self._frame.after_image],
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        text = self.model.text_model
        tied = text.lm_head.weight is text.model.embed_tokens.weight
        for key, value in sorted(self.model.state_dict().items()):
            if not (tied and key == "text_model.lm_head.weight"):  # the token embedding again
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def config(self) -> Mapping[str, Any]:
        """The arguments of :meth:`from_pretrained` that rebuild this generator; not the device."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuild a generator from :attr:`config`, on the device chosen automatically.

        Raises:
            InvalidInputError: a setting is unknown.
            WeightsError: as :meth:`from_pretrained`.
        """
        check_settings("Kosmos1Generator", config, _SETTINGS)
        return cls.from_pretrained(**config)

    def _tokenize(self, text: str) -> Sequence[int]:
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _token_texts(self, tokens: Sequence[int]) -> tuple[str, ...]:
        pieces = self.processor.tokenizer.convert_ids_to_tokens(list(tokens))
        return tuple(piece.replace("\u2581", " ") for piece in pieces)  # SentencePiece's mark of a space

    def _detokenize(self, tokens: Sequence[int]) -> str:
        text: str = self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text.strip()

    def _see(self, images: Sequence[Image]) -> Tensor:
        with ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as pool:
            pictures = list(pool.map(lambda image: _trim(decode(image)), images))
        pixels = self.processor.image_processor(
            pictures, return_tensors="pt"
        ).pixel_values  # [n, 3, 224, 224]
        vision = self.model.vision_model
        seen = vision(
            pixels.to(self._language.device, self._language.dtype)
        ).last_hidden_state  # [n, 257, 1024]
        seen = normalize(vision.model.post_layernorm(seen), dim=-1)
        states: Tensor = self.model.image_to_text_projection(seen)[0]  # [n, 64, 2048]
        return states


class _KosmosText:
    """Kosmos' decoder as a :class:`~zsqretrieval.generators.engine.likelihood.LanguageModel`."""

    def __init__(self, text_model: Any) -> None:
        self._decoder = text_model.model
        self._head = text_model.lm_head
        self.max_tokens = int(text_model.config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._head.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._head.weight.dtype
        return dtype

    def embed(self, ids: Tensor) -> Tensor:
        embeds: Tensor = self._decoder.embed_tokens(ids)  # the decoder itself scales them by sqrt(D)
        return embeds

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: DynamicCache | None,
    ) -> Tensor:
        hidden: Tensor = self._decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids
            + self._decoder.embed_positions.padding_idx
            + 1,  # fairseq counts from there
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden)
        return logits

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return logits_of(hidden, self._head, tokens)


def _load(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    ensure_importable()
    import transformers

    classes: Any = transformers  # whose stubs leave much out
    family = classes.AutoConfig.from_pretrained(source).model_type
    if family != _FAMILY:
        raise WeightsError(f"{source} is a {family} model, not Kosmos; VLMGenerator may read it")
    model, report = classes.Kosmos2ForConditionalGeneration.from_pretrained(
        source, dtype=dtype, output_loading_info=True
    )
    check_complete(source, report)
    # Pillow resizes alike on every machine; torchvision, which may or may not be there, resizes otherwise.
    image_processor = classes.CLIPImageProcessorPil.from_pretrained(source)
    return model, classes.Kosmos2Processor(image_processor, classes.AutoTokenizer.from_pretrained(source))


def _explain(source: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:500]
    what = f"cannot load Kosmos from {source}: {type(error).__name__}: {reason}"
    if Path(source).is_dir():
        return f"{what}. The folder is incomplete, damaged, or of another model: copy or save it again"
    return (
        f"{what}. With network, the repository {_DEFAULT} is downloaded once and cached. Offline, load it on "
        "a machine with network, write it with save_pretrained(folder), copy that here and name its path"
    )


def _trim(picture: PILImage.Image) -> PILImage.Image:
    """Cut the far ends off a very long picture: the model looks at the middle square only."""
    width, height = picture.size
    limit = _LONGEST * min(width, height)
    left, top = max(0, width - limit) // 2, max(0, height - limit) // 2
    return picture.crop((left, top, width - left, height - top)) if left or top else picture
