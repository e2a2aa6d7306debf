"""Devices, dtypes and digests of weights, and loading of models with transformers and open_clip."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from typing_extensions import Self

from zsqretrieval._util.checks import check_settings
from zsqretrieval._util.optional import import_optional
from zsqretrieval._util.processes import Lock
from zsqretrieval.errors import InvalidInputError, MissingDependencyError, WeightsError

if TYPE_CHECKING:
    import hashlib

    import torch

T = TypeVar("T")

DTYPES = ("float32", "bfloat16", "float16")


def resolve_device(device: str | None) -> torch.device:
    """The device of that name; for None that of ``ZSQ_DEVICE``, else the first there is of CUDA, MPS, CPU.

    Raises:
        InvalidInputError: the device is not available.
    """
    import torch

    device = device or os.environ.get("ZSQ_DEVICE") or None
    if device is None:
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        device = next(name for name, there in available.items() if there)
    try:
        found = torch.zeros(1, device=device)
        found.item()  # "meta" computes nothing
        return found.device
    except Exception as error:  # of any type, such as ImportError for "hpu"
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise InvalidInputError(
            f"device {device!r} cannot be used here: {why}; leave out device, --device and ZSQ_DEVICE to use "
            "the best there is"
        ) from error


def resolve_dtype(dtype: str | None, device: torch.device) -> tuple[str, torch.dtype]:
    """The name of a dtype and torch's own.

    None becomes bfloat16 where the device has arithmetic for it (CUDA from Ampere on, CPUs with AMX or
    AVX512-BF16), else float32.

    Raises:
        InvalidInputError: it is not one of :data:`DTYPES`.
    """
    import torch

    if dtype is None:
        on_cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        fast = {"cuda": torch.cuda.is_bf16_supported, "cpu": lambda: on_cpu}.get(device.type, lambda: False)()
        dtype = "bfloat16" if fast else "float32"
    if dtype not in DTYPES:
        raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    kind: torch.dtype = getattr(torch, dtype)
    return dtype, kind


class FromPretrained:
    """:class:`~zsqretrieval.protocols.Configurable` for a part that has ``from_pretrained``.

    A part that was given its model has no ``_config``, and so no ``config``: no name restores it.
    """

    _settings: ClassVar[tuple[str, ...]]  # arguments of from_pretrained that rebuild the part
    _required: ClassVar[tuple[str, ...]] = ()
    _config: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The arguments of ``from_pretrained`` that rebuild this part; not the device."""
        return dict(self._config)

    def __repr__(self) -> str:
        settings: Mapping[str, Any] = getattr(self, "_config", {})
        return f"{type(self).__name__}({', '.join(f'{name}={one!r}' for name, one in settings.items())})"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuild a part from :attr:`config`, on the default device.

        Raises:
            InvalidInputError: a setting is unknown or missing.
            Exception: as ``from_pretrained``.
        """
        check_settings(cls.__name__, config, cls._settings)
        for name in cls._required:
            if name not in config:
                raise InvalidInputError(f"{cls.__name__} needs the setting {name!r}")
        load: Any = cls.from_pretrained  # type: ignore[attr-defined]
        part: Self = load(**config)
        return part


# -- fingerprints


def add_tensors(digest: hashlib._Hash, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add names, dtypes, shapes and values of tensors to a digest, in the order of their names."""
    import torch

    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """The JSON-serialisable settings of a tokenizer that determine its tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"vocab": tokenizer.get_vocab()}
    facts = json.loads(backend.to_str())
    return {key: fact for key, fact in facts.items() if key not in ("truncation", "padding")}  # set by calls


def without_origin(settings: Any) -> Any:
    """Nested settings without the place and the version they were loaded from."""
    if isinstance(settings, Mapping):
        origin = {"_name_or_path", "name_or_path", "transformers_version", "_commit_hash"}
        return {key: without_origin(value) for key, value in settings.items() if key not in origin}
    return settings


# -- loading with transformers


def import_transformers() -> Any:
    """The package, untyped: most of it has no annotations."""
    ensure_torchvision()
    return importlib.import_module("transformers")


def import_sentence_transformers(needed_for: str) -> Any:
    """The package, untyped; a MissingDependencyError if it cannot be imported."""
    ensure_torchvision()
    return import_optional("sentence_transformers", needed_for, "pip install 'sentence-transformers>=6.2'")


def check_complete(name: str, report: Mapping[str, Iterable[object]]) -> None:
    """Refuse a model with missing weights, which transformers draws at random and only logs.

    ``report`` is the loading info of ``from_pretrained(..., output_loading_info=True)``.

    Raises:
        WeightsError: weights are missing, or of another shape; names three of them.
    """
    if absent := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise WeightsError(
            f"{name} has no weights, or weights of another shape, for {', '.join(absent[:3])}"
            f"{' and others' if len(absent) > 3 else ''}; fetch or save it again"
        )


_REMOTE_CODE = ("get_cached_module_file", "get_class_in_module")  # fetches a Python file; runs it
_refusing: ContextVar[bool] = ContextVar("refusing remote code", default=False)


@contextmanager
def no_remote_code() -> Iterator[None]:
    """Run no Python file that a model's folder or repository brings along, whatever its settings say.

    ``trust_remote_code=False`` is not enough: open_clip takes transformers' arguments from a model's own
    configuration, and without the argument transformers asks on the terminal.

    Raises:
        WeightsError: the block wanted to run or to ask for such code.
    """
    from transformers import dynamic_module_utils

    remote: Any = dynamic_module_utils
    with _lock:
        if not hasattr(remote.get_class_in_module, "zsqretrieval"):
            for name in _REMOTE_CODE:
                setattr(remote, name, _refused(getattr(remote, name)))
            remote.input = _refused(lambda *prompt: input(*prompt))  # by which it asks
    before = _refusing.set(True)
    try:
        yield
    except Exception as error:
        if "custom code" not in str(error):
            raise
        reason = " ".join(str(error).split()).partition(" You can inspect")[0]
        raise WeightsError(
            f"{reason}: code that comes with weights is never run here; use a model that transformers itself "
            "implements"
        ) from error
    finally:
        _refusing.reset(before)


def _refused(function: Callable[..., T]) -> Callable[..., T]:
    """A function that runs no more while :func:`no_remote_code` holds in the same thread."""

    @functools.wraps(function)
    def guarded(*args: Any, **settings: Any) -> T:
        if _refusing.get():
            raise WeightsError("the model contains custom code")
        return function(*args, **settings)

    guarded.zsqretrieval = True  # type: ignore[attr-defined]  # the mark that it is guarded already
    return guarded


@contextmanager
def loading(what: str, source: str, advice: str) -> Iterator[None]:
    """Turn any error of transformers, huggingface_hub, json and safetensors into one of the library's.

    ``what`` is loaded from ``source``; ``advice`` is for a source that is not a folder. No code that comes
    with the source is run.
    """
    try:
        with no_remote_code():
            yield
    except (MemoryError, WeightsError):
        raise
    except ImportError as error:
        package = error.name or next(iter(re.findall(r"`([\w-]+)`", str(error))), str(error))
        raise MissingDependencyError(package, what, f"pip install {package}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:500].rstrip(".")
        if Path(source).is_dir():
            advice = "The folder is incomplete, damaged, or of another model: copy or save it again"
        raise WeightsError(f"cannot load {what}: {type(error).__name__}: {reason}. {advice}") from error


# -- torchvision
#
# A CUDA build of torchvision cannot load its operators beside a CPU build of torch. Its import then fails
# with "operator torchvision::nms does not exist", and so do open_clip, timm and the image models of
# transformers (pytorch/vision#9085, pytorch/pytorch#157648). This library needs none of the operators: their
# schemas without an implementation are enough.

_OPERATORS = ("nms", "qnms")
_MISSING_OPERATOR = re.compile(rf"operator torchvision::({'|'.join(_OPERATORS)}) does not exist")

_lock = Lock()
_library: Any = None  # a torch.library.Library; the schemas live as long as this object


def ensure_torchvision() -> None:
    """Import torchvision; if operators are missing, declare their schemas and import it again.

    Call it before importing open_clip, timm, or an image model of transformers. Without torchvision it does
    nothing. Safe in any thread.

    Raises:
        Exception: any other error of ``import torchvision``.
    """
    with _lock:
        try:
            importlib.import_module("torchvision")
        except ModuleNotFoundError as error:
            if error.name != "torchvision":
                raise
        except RuntimeError as error:
            if not _MISSING_OPERATOR.search(str(error)):
                raise
            _declare_operators()
            # the failed import left submodules behind
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            importlib.import_module("torchvision")


def _declare_operators() -> None:
    global _library
    if _library is None:
        import torch

        torch_library: Any = torch.library  # partly unannotated
        library = torch_library.Library("torchvision", "FRAGMENT")
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library = library
