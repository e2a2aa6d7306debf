"""Which rows of LAION may be used: decided on columns, before anything of a row is kept or shown.

A row is denied unless it is known to be safe. Reports have numbers and reasons, never anything of a denied
row.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_shares
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.laion.hashes import FORMS, LOOKED_UP, NAMES, HashList, hashes_of
from zsqretrieval.laion.metadata import batch_of, read_table, text_of
from zsqretrieval.laion.storage import File, opened_parquet
from zsqretrieval.types import Image

if TYPE_CHECKING:
    import pyarrow as pa

REASONS: Mapping[str, str] = {
    "removed": "on the album's removal list",
    "opted_out": "its server opted out by X-Robots-Tag",
    "unsafe": "punsafe is above the limit",
    "unknown": "punsafe is missing, NULL or no probability, or ambiguous",
    "nsfw": "tagged NSFW or UNSURE",
    "watermark": "pwatermark is above the limit",
    "not_allowed": "not on the allow list",
    "altered": "its bytes are not those of its md5 or sha256",
}
"""Why a row is denied; the first that holds counts."""

_MARKS = ("punsafe", "pwatermark", "nsfw")
_READ = frozenset((*_MARKS, "error_message", *LOOKED_UP))


@dataclass(frozen=True, slots=True)
class Safety:
    """Rules for rows of LAION; the defaults deny what is not known to be safe.

    Attributes:
        max_punsafe: a row whose ``punsafe`` is above is denied; 0.45 is that of Re-LAION's ``research-safe``.
            1 denies no known value.
        unknown: what becomes of a row without ``punsafe``: NULL, no number in [0, 1], or no such column.
            ``"drop"`` denies it. ``"keep"`` leaves it to the other rules, for sets such as LAION-400M that
            have only NSFW tags.
        nsfw: tags of the ``NSFW`` column that are not denied; rows without a tag pass. None: any tag.
        max_pwatermark: a row whose ``pwatermark`` is above is denied; rows without it pass, since a watermark
            is no danger.
        allow: list of rows that may be used, such as those of Re-LAION; any other is denied.
        allow_by: the column that names a row on the allow list.
        removed: list of rows that are denied whatever else holds; an album adds its own.
        opted_out: ``"drop"`` denies rows of img2dataset that say that the server opted out
            (``X-Robots-Tag``).

    Raises:
        InvalidInputError: a limit is outside [0, 1], or another value is not one of those named.
    """

    max_punsafe: float = 0.45
    unknown: Literal["drop", "keep"] = "drop"
    nsfw: Collection[str] | None = ("UNLIKELY",)
    max_pwatermark: float = 0.8
    allow: HashList | None = None
    allow_by: str = "url"
    removed: HashList | None = None
    opted_out: Literal["drop", "keep"] = "drop"

    def __post_init__(self) -> None:
        check_shares(max_punsafe=self.max_punsafe, max_pwatermark=self.max_pwatermark)
        for name in ("unknown", "opted_out"):
            if getattr(self, name) not in ("drop", "keep"):
                raise InvalidInputError(f"{name} must be 'drop' or 'keep', not {getattr(self, name)!r}")
        tags = () if self.nsfw is None else self.nsfw
        if (
            isinstance(tags, str)
            or not isinstance(tags, Collection)
            or not all(isinstance(tag, str) for tag in tags)
        ):
            raise InvalidInputError(f"nsfw must be a list of tags, not {self.nsfw!r}")
        for name in ("allow", "removed"):
            if not isinstance(getattr(self, name), HashList | None):
                raise InvalidInputError(f"{name} must be a HashList, not {getattr(self, name)!r}")
        if self.allow_by not in NAMES:
            raise InvalidInputError(f"allow_by must be one of {', '.join(NAMES)}, not {self.allow_by!r}")
        if self.allow and FORMS[self.allow_by] not in self.allow.forms:
            raise InvalidInputError(
                f"no name on the allow list is like a {self.allow_by}, so every row would be denied; say by "
                f"which column it was made: allow_by={', '.join(map(repr, NAMES))}"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the rules read."""
        named = self.removed is not None or self.allow is not None
        return (*_MARKS, "error_message", *(LOOKED_UP if named else ()))

    def mask(self, batch: pa.RecordBatch, denied: Denied | None = None) -> NDArray[np.bool_]:
        """Which of the n rows of a canonical batch may be used, bool [n]; counts the others by reason."""
        rows = batch.num_rows
        kept = np.ones(rows, np.bool_)
        for reason, hit in self._hits(batch).items():
            count = int((kept & hit).sum())
            if denied is not None and count:
                denied[reason] = denied.get(reason, 0) + count
            kept &= ~hit
        return kept

    def _hits(self, batch: pa.RecordBatch) -> dict[str, NDArray[np.bool_]]:
        """The rows for which each reason holds, in the order of :data:`REASONS`."""
        nothing = np.zeros(batch.num_rows, np.bool_)
        present = set(batch.schema.names)
        hits = dict.fromkeys(REASONS, nothing)
        if self.removed is not None and len(self.removed):
            hits["removed"] = self.removed.lists(batch)
        if self.opted_out == "drop" and "error_message" in present:
            hits["opted_out"] = _opted_out(batch.column("error_message"))
        unsafe = _probabilities(batch, "punsafe")
        hits["unsafe"] = unsafe > np.float32(self.max_punsafe)  # NaN is above nothing
        if self.unknown == "drop":
            hits["unknown"] = np.isnan(unsafe)
        if self.nsfw is not None and "nsfw" in present:
            hits["nsfw"] = _tagged(batch.column("nsfw"), self.nsfw)
        hits["watermark"] = _probabilities(batch, "pwatermark") > np.float32(self.max_pwatermark)
        if self.allow is not None:
            named = self.allow_by in present
            listed = self.allow.contains(hashes_of(batch.column(self.allow_by))) if named else nothing
            hits["not_allowed"] = ~listed
        return hits

    def mask_table(self, table: File, denied: Denied | None = None) -> NDArray[np.bool_]:
        """As :meth:`mask`, for all rows of a parquet file, batch by batch."""
        with opened_parquet(table) as opened:
            rows = opened.metadata.num_rows
        kept = [self.mask(one.batch, denied) for one in read_table(table, columns=self.columns)]
        if sum(map(len, kept)) < rows:  # none of the columns is there
            kept = [self.mask_rows([{}] * rows, denied)]
        return np.concatenate([*kept, np.empty(0, np.bool_)])

    def mask_rows(self, rows: Sequence[Mapping[str, Any]], denied: Denied | None = None) -> NDArray[np.bool_]:
        """As :meth:`mask`, for the metadata of n rows; values of other types count as NULL.

        A row with different values in ``punsafe`` and ``PUNSAFE``, and the like, is unknown.
        """
        clear = np.array([self.unknown == "keep" or not _is_ambiguous(row) for row in rows], np.bool_)
        if denied is not None and not clear.all():
            denied["unknown"] = denied.get("unknown", 0) + int((~clear).sum())
        clear[clear] = self.mask(batch_of(list(map(_facts, itertools.compress(rows, clear)))), denied)
        return clear


NO_RULES = Safety(max_punsafe=1, unknown="keep", nsfw=None, max_pwatermark=1, opted_out="keep")
"""Rules that deny nothing."""

Denied: TypeAlias = dict[str, int]
"""Numbers of denied rows by reason, a key of :data:`REASONS`."""

SafetyLike: TypeAlias = "Safety | Literal['auto'] | None"
"""Rules; ``"auto"``: the default ones for what has the columns of LAION; None: none."""


def safety_for(safety: SafetyLike, names: Collection[str]) -> Safety | None:
    """The rules for rows with columns of these names.

    Columns are LAION's if one is ``punsafe``, ``pwatermark`` or ``NSFW``, or if there are ``url`` and
    ``similarity``; in any case.

    Raises:
        InvalidInputError: ``safety`` is something else.
    """
    if safety is None or isinstance(safety, Safety):
        return safety
    if safety != "auto":
        raise InvalidInputError(f"safety must be Safety(...), 'auto' or None, not {safety!r}")
    lower = {str(name).lower() for name in names}
    return Safety() if not lower.isdisjoint(_MARKS) or {"url", "similarity"} <= lower else None


def permitted(rows: Sequence[Mapping[str, Any]], safety: SafetyLike, denied: Denied) -> NDArray[np.bool_]:
    """Which of n rows may be used by their metadata, bool [n]; counts the others by reason.

    The rules for each row are those for its own columns: the others of its batch must not decide on it.
    """
    found = [safety_for(safety, row.keys()) for row in rows]
    ruled = np.array([one is not None for one in found], np.bool_)
    kept = ~ruled
    rules = next((one for one in found if one is not None), None)
    if rules is not None:
        kept[ruled] = rules.mask_rows(list(itertools.compress(rows, ruled)), denied)
    return kept


def verified(image: Image) -> bool | None:
    """Whether the bytes of an image are those of the ``md5`` or ``sha256`` in its metadata.

    None if it has neither, or no bytes.
    """
    if not isinstance(image.content, bytes):
        return None
    facts = {str(key).lower(): value for key, value in image.metadata.items()}
    stated = {name: one for name in ("md5", "sha256") if isinstance(one := facts.get(name), str) and one}
    if not stated:
        return None
    return all(hashlib.new(name, image.content).hexdigest() == one.lower() for name, one in stated.items())


def unaltered(images: Iterable[Image | ImageError], denied: Denied) -> Iterator[Image | ImageError]:
    """The images of a shard, without those whose bytes differ from the digest in their metadata.

    img2dataset records the digest of what it downloaded. If it then resized or re-encoded the images, as by
    default, the bytes of all of them differ, and nothing can be verified here: where none of the first
    hundred images has the bytes of its digest, all are used. Its own option ``--verify_hash`` compares
    before that.

    Args:
        images: of one shard; up to a hundred are in memory, until one has the bytes of its digest.
        denied: counts those that are left out, as ``altered``.
    """
    rest = iter(images)
    first: list[Image | ImageError] = []
    kept_as_fetched = False
    for one in itertools.islice(rest, 100):
        first.append(one)
        if kept_as_fetched := isinstance(one, Image) and verified(one) is True:
            break
    for one in itertools.chain(first, rest):
        if kept_as_fetched and isinstance(one, Image) and verified(one) is False:
            denied["altered"] = denied.get("altered", 0) + 1
        else:
            yield one


def _probabilities(batch: pa.RecordBatch, name: str) -> NDArray[np.float32]:
    """A column as float32 [n]; NaN where it is NULL, no probability, or absent."""
    if name not in batch.schema.names:
        return np.full(batch.num_rows, np.nan, np.float32)
    values: NDArray[np.float32] = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float32)
    return np.where((values >= 0) & (values <= 1), values, np.float32(np.nan))


def _tagged(column: Any, allowed: Collection[str]) -> NDArray[np.bool_]:
    """Which cells are texts that are not allowed."""
    import pyarrow as pa
    from pyarrow import compute as pc

    tags = pc.utf8_upper(pc.utf8_trim_whitespace(column))
    known = pc.is_in(tags, value_set=pa.array([*map(str.upper, allowed), ""], pa.string()))
    return _bools(pc.and_(pc.is_valid(column), pc.invert(known)))


def _opted_out(column: Any) -> NDArray[np.bool_]:
    """Which cells are the message with which img2dataset records an opt-out."""
    from pyarrow import compute as pc

    return _bools(pc.match_substring(text_of(column), "X-Robots-Tag", ignore_case=True))


def _bools(column: Any) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = column.fill_null(False).to_numpy(zero_copy_only=False)
    return found


def _is_ambiguous(row: Mapping[str, Any]) -> bool:
    facts = {(str(key).lower(), str(value)) for key, value in row.items() if value is not None}
    names = [name for name, _ in facts if name in _MARKS]
    return len(set(names)) < len(names)


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the rules read of a row, by names in lower case; but ``URL`` and ``url`` stay two names of it."""
    given = {str(name): value for name, value in row.items() if value is not None}
    return {
        name if name.lower() in LOOKED_UP else name.lower(): value
        for name, value in given.items()
        if name.lower() in _READ
    }
