"""Everything this library raises on purpose.

    ZsqError
     ├── InvalidInputError        (also ValueError)   an argument is wrong: shape, dtype, range, content
     │    └── ImageError                              an image cannot be decoded, or a model cannot take it
     ├── PartError                                    a plugin gave an answer that breaks its contract
     ├── IntegrityError                               stored bytes are damaged: checksum, truncation, format
     │    └── DamagedIndexError                       an index found damage in the middle of a search
     ├── MismatchError            (also ValueError)   two parts do not belong together: dim, metric, encoder
     ├── AlbumError                                   an album is missing, already there, or in use
     ├── WeightsError                                 model weights cannot be found, fetched or trusted
     └── MissingDependencyError   (also ImportError)  an optional package is absent; carries the pip line

Every message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations


class ZsqError(Exception):
    """Root of the tree; catching it catches whatever this library raises on purpose."""


class InvalidInputError(ZsqError, ValueError):
    """An argument has the wrong shape, dtype, range or content. Nothing was changed."""


class ImageError(InvalidInputError):
    """An image cannot be decoded, or a model cannot take it.

    Attributes:
        source: where the image came from (path, archive member, ``<bytes>``).
        reason: what is wrong with it.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.source, self.reason)


class PartError(ZsqError):
    """An encoder, index, generator, fusion or re-ranker gave an answer that breaks its contract.

    The message names the part and what was wrong. :mod:`zsqretrieval.testing` checks parts.
    """


class IntegrityError(ZsqError):
    """A stored file is damaged, truncated, or of a format this version does not read."""


class DamagedIndexError(IntegrityError):
    """An index found, in the middle of its work, that its file is damaged; it cannot go on."""


class MismatchError(ZsqError, ValueError):
    """Two parts do not belong together; the message names both sides."""


class AlbumError(ZsqError):
    """An album directory is missing, already exists, or cannot be used as asked."""


class WeightsError(ZsqError):
    """Model weights cannot be found, fetched, or verified."""


class MissingDependencyError(ZsqError, ImportError):
    """An optional package is not installed.

    Args:
        package: what could not be imported.
        needed_for: what needs it, as a phrase ("the HNSW index").
        install: the exact command that installs it.
    """

    def __init__(self, package: str, needed_for: str, install: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which cannot be imported; "
            f"install it with: {install}"
        )
        self.package = package
        self.needed_for = needed_for
        self.install = install

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str, str]]:
        return type(self), (self.package, self.needed_for, self.install)
