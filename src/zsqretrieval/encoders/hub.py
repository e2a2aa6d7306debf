"""Encoders over models of transformers and sentence-transformers, which load on first use."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.checks import check_strings
from zsqretrieval._util.letters import as_letters, without_marks
from zsqretrieval._util.processes import Lock
from zsqretrieval._util.torch import (
    DTYPES,
    FromPretrained,
    add_tensors,
    check_complete,
    import_sentence_transformers,
    import_transformers,
    loading,
    resolve_device,
    tokenizer_facts,
    without_origin,
)
from zsqretrieval.data.images import decode, trimmed
from zsqretrieval.encoders.rows import encode_batches, encode_pictures
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.types import Image

if TYPE_CHECKING:
    import torch
    from PIL import Image as PILImage

_loading = Lock()  # one model at a time
_SIGLIP_TOKENS = 64
_ADVICE = "Give a folder, or a name on the Hugging Face hub that can be downloaded"


class _HubEncoder(FromPretrained, ABC):
    """What both encoders share: settings, loading on first use, and the fingerprint."""

    _settings = ("name_or_path", "dtype", "revision")
    _required = ("name_or_path",)
    safe_settings: ClassVar[Mapping[str, Any]] = {"dtype": DTYPES, "revision": (None,)}

    def __init__(self, model: Any, dtype: str, device: str | None, revision: str | None) -> None:
        if dtype not in DTYPES:
            raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        self._device = device
        if isinstance(model, str | Path):
            name = str(Path(model).absolute()) if Path(model).is_dir() else str(model)
            self._config = {"name_or_path": name, "dtype": dtype, "revision": revision}
        else:  # without config: it cannot be restored by name
            self._given = model

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **settings: Any) -> Self:
        """Make an encoder by the name of its model; arguments are those of the class."""
        return cls(name_or_path, **settings)

    @cached_property
    def _model(self) -> Any:
        with _loading:
            if "_model" in self.__dict__:  # by another thread, in the meantime
                return self.__dict__["_model"]
            return self._loaded().eval()

    @abstractmethod
    def _loaded(self) -> Any:
        """The model on its device."""

    @abstractmethod
    def _facts(self) -> Mapping[str, Any]:
        """What changes a vector beside the weights; JSON with ``default=str``."""

    @abstractmethod
    def _input(self, image: Image) -> Any:
        """What the model takes for one image."""

    @abstractmethod
    def _image_features(self, inputs: list[Any]) -> torch.Tensor:
        """The outputs [b, dim] of the model for b images, of any length."""

    @abstractmethod
    def _text_features(self, texts: list[str]) -> torch.Tensor:
        """The outputs [b, dim] of the model for b texts, of any length."""

    @cached_property
    def dim(self) -> int:
        """Length of every vector; loads the model."""
        return int(self._text_features(["a"]).shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, dtype, preprocessing and tokenizer; not the device. Loads the model."""
        digest = hashlib.sha256()
        facts = {"class": type(self).__name__, **self._facts()}
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
        add_tensors(digest, self._model.state_dict())
        return digest.hexdigest()

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode images; see :meth:`zsqretrieval.protocols.Encoder.encode_image`.

        Raises:
            ImageError: an image cannot be decoded; names it.
        """
        return encode_pictures(self._input, self._image_features, images, batch_size=batch_size, dim=self.dim)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode texts; see :meth:`zsqretrieval.protocols.Encoder.encode_text`.

        A text longer than the model's limit is cut.

        Raises:
            InvalidInputError: ``texts`` is one string, or contains something other than strings.
        """
        check_strings(texts)
        return encode_batches(self._text_features, texts, batch_size=batch_size, dim=self.dim)


class TransformersEncoder(_HubEncoder):
    """Any model of transformers with ``get_image_features`` and ``get_text_features``.

    CLIP, SigLIP, SigLIP 2, MetaCLIP 2, ALIGN and others; code that comes with weights is never run. SigLIP
    reads lower case, padded to 64 tokens without a mask, as it was trained. Special tokens in a text are
    letters. In float32 the batch size changes a vector by less than 1e-5.

    Args:
        model: a name on the hub, a folder of ``save_pretrained``, or the model itself. It loads on first use.
        processor: of a model that is given itself; its ``image_processor`` and ``tokenizer`` are used.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``, of a model given by name.
        device: ``"cuda"``, ``"cpu"``, ...; None for that of ``ZSQ_DEVICE``, else the best there is. A model
            that is given itself stays where it is.
        revision: branch, tag or commit on the hub.

    Raises:
        InvalidInputError: a setting is wrong. On first use also: the model has no such methods, or no
            processor for images and text.
        WeightsError, MissingDependencyError: on first use: it cannot be loaded.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        dtype: str = "float32",
        device: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(model, dtype, device, revision)
        if (processor is None) != hasattr(self, "_config"):
            raise InvalidInputError("give a model with its processor, or the name of both")
        self._given_processor = processor

    def _loaded(self) -> Any:
        if not hasattr(self, "_config"):
            model, self._processor = self._given, self._given_processor
        else:
            hf, name = import_transformers(), self._config["name_or_path"]
            own = {"revision": self._config["revision"] or "main", "trust_remote_code": False}
            with loading(f"the encoder {name}", name, _ADVICE):
                self._processor = hf.AutoProcessor.from_pretrained(name, **own)
                model, report = hf.AutoModel.from_pretrained(
                    name, dtype=self._config["dtype"], output_loading_info=True, **own
                )
            check_complete(name, report)
            model = model.to(resolve_device(self._device))
        if not all(hasattr(model, method) for method in ("get_image_features", "get_text_features")):
            raise InvalidInputError(
                f"a {type(model).__name__} has no get_image_features and get_text_features; use a model such "
                "as google/siglip2-base-patch16-224"
            )
        if not all(hasattr(self._processor, part) for part in ("image_processor", "tokenizer")):
            raise InvalidInputError(
                f"a {type(self._processor).__name__} is no processor for images and text; save the whole "
                "processor beside the weights"
            )
        self._siglip = _is_siglip(model)
        self._letters = as_letters(self._processor.tokenizer)
        return model

    def _facts(self) -> Mapping[str, Any]:
        return {
            "model": without_origin(self._model.config.to_dict()),
            "images": self._processor.image_processor.to_dict(),
            "tokenizer": tokenizer_facts(self._processor.tokenizer),
            "limit": self._limit,
        }

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Which texts are longer than the model's context."""
        limit = self._limit
        return [len(self._letters(self._cased(text), verbose=False).input_ids) > limit for text in texts]

    @cached_property
    def _limit(self) -> int:
        """Most tokens of a text."""
        text = self._model.config.get_text_config()
        known = (self._letters.model_max_length, getattr(text, "max_position_embeddings", None))
        return int(min(_SIGLIP_TOKENS if self._siglip else 2**20, *(one for one in known if one)))

    def _cased(self, text: str) -> str:
        return text.lower() if self._siglip else text

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        import torch

        model, limit = self._model, self._limit
        cased = [self._cased(text) for text in texts]
        inputs = self._processor.tokenizer.pad(
            {"input_ids": self._letters(cased, truncation=True, max_length=limit).input_ids},
            padding="max_length" if self._siglip else "longest",
            max_length=limit,
            return_tensors="pt",
        )
        wanted = ("input_ids",) if self._siglip else ("input_ids", "attention_mask")
        with torch.inference_mode():
            return _features(
                model.get_text_features(**{name: inputs[name].to(model.device) for name in wanted})
            )

    def _input(self, image: Image) -> dict[str, torch.Tensor]:
        processor = self._processor.image_processor
        picture = decode(image)
        if getattr(processor, "do_center_crop", False):
            picture = trimmed(picture)
        return dict(processor(images=[picture], return_tensors="pt"))

    def _image_features(self, inputs: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        import torch

        model = self._model
        joined = {name: torch.cat([one[name] for one in inputs]).to(model.device) for name in inputs[0]}
        cast = {name: one.to(model.dtype) if one.is_floating_point() else one for name, one in joined.items()}
        return _features(model.get_image_features(**cast))


class SentenceTransformerEncoder(_HubEncoder):
    """A ``SentenceTransformer`` that takes images and texts, such as CLIP or Qwen3-VL-Embedding.

    Texts are encoded as queries and images as documents, with the prompts of the model. Texts are never taken
    for paths or URLs of images, which sentence-transformers would open. Special tokens in a text are broken
    by a space. Code that comes with weights is never run.

    Args:
        model: a name on the hub, a folder, or a ``SentenceTransformer``. It loads on first use.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``, of a model given by name.
        device: as for :class:`TransformersEncoder`.
        revision: branch, tag or commit on the hub.

    Raises:
        InvalidInputError: a setting is wrong. On first use also: the model takes no images or no texts.
        WeightsError, MissingDependencyError: on first use: it cannot be loaded.
    """

    def __init__(
        self,
        model: Any,
        *,
        dtype: str = "float32",
        device: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(model, dtype, device, revision)

    def _loaded(self) -> Any:
        if not hasattr(self, "_config"):
            model = self._given
        else:
            package = import_sentence_transformers("SentenceTransformerEncoder")
            name = self._config["name_or_path"]
            with loading(f"the encoder {name}", name, _ADVICE):
                model = package.SentenceTransformer(
                    name,
                    device=str(resolve_device(self._device)),
                    trust_remote_code=False,
                    revision=self._config["revision"],
                    model_kwargs={"dtype": self._config["dtype"]},
                )
        if not (hasattr(model, "encode_query") and model.supports("image") and model.supports("text")):
            takes = ", ".join(map(str, getattr(model, "modalities", ["something else"])))
            raise InvalidInputError(f"this {type(model).__name__} takes {takes}, not both images and texts")
        return model

    def _facts(self) -> Mapping[str, Any]:
        transformer = self._model[0]
        processor = getattr(transformer, "processor", None)
        images = getattr(processor, "image_processor", None)
        return {
            "modules": [type(module).__qualname__ for module in self._model],
            "model": without_origin(transformer.auto_model.config.to_dict()),
            "images": images and images.to_dict(),
            "template": getattr(processor, "chat_template", None),
            "tokenizer": tokenizer_facts(self._model.tokenizer),
            "limit": self._limit,
            "prompts": [self._model.prompts, self._model.default_prompt_name],
        }

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Which texts are longer than the model's limit; prompts and templates are not counted."""
        limit, tokenizer = self._limit, self._model.tokenizer
        lengths = [len(tokenizer(text, verbose=False).input_ids) for text in map(self._words, texts)]
        return [limit is not None and length > limit for length in lengths]

    @property
    def _limit(self) -> int | None:
        return _SIGLIP_TOKENS if _is_siglip(self._model[0].auto_model) else self._model.max_seq_length

    def _words(self, text: str) -> str:
        text = text.lower() if _is_siglip(self._model[0].auto_model) else text
        return without_marks(self._model.tokenizer, text)

    def _image_features(self, inputs: list[PILImage.Image]) -> torch.Tensor:
        return self._encoded(self._model.encode_document, inputs)

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        return self._encoded(self._model.encode_query, [{"text": self._words(text)} for text in texts])

    def _encoded(self, encode: Any, batch: list[Any]) -> torch.Tensor:
        settings = {}
        if _is_siglip(self._model[0].auto_model):  # else sentence-transformers pads to the longest of a batch
            padded = {"padding": "max_length", "max_length": _SIGLIP_TOKENS, "truncation": True}
            settings["processing_kwargs"] = {"text": {**padded, "return_attention_mask": False}}
        found: torch.Tensor = encode(
            batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False, **settings
        )
        return found

    def _input(self, image: Image) -> PILImage.Image:
        picture = decode(image)
        images = getattr(getattr(self._model[0], "processor", None), "image_processor", None)
        return trimmed(picture) if getattr(images, "do_center_crop", False) else picture


def _is_siglip(model: Any) -> bool:
    """Whether a model reads texts as SigLIP: in lower case, padded to 64 tokens, and the padding too."""
    return str(model.config.model_type).startswith("siglip")


def _features(found: Any) -> torch.Tensor:
    """The vectors of ``get_..._features``, which newer transformers return among others."""
    pooled: torch.Tensor = getattr(found, "pooler_output", found)
    return pooled
