"""Changes of images by their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zsqretrieval._util.checks import shown
from zsqretrieval._util.untrusted import mended_json
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.errors import InvalidInputError


def records_of(find: Callable[[list[str]], Mapping[str, Record]], ids: str | Iterable[str]) -> list[Record]:
    """The records of n ids, in order; an InvalidInputError names an id that ``find`` does not."""
    if not isinstance(ids, Iterable):
        raise InvalidInputError(f"ids must be a string, or several in a list, not {shown(ids)}")
    wanted = [ids] if isinstance(ids, str) else list(ids)
    present = find([id for id in wanted if isinstance(id, str)])
    if missing := [id for id in wanted if not isinstance(id, str) or id not in present]:
        raise InvalidInputError(
            f"{len(missing)} of {len(wanted)} ids are not in the album, the first is "
            f"{shown(missing[0])}; nothing was changed"
        )
    return [present[id] for id in wanted]


def remove(catalog: Catalog, ids: str | Iterable[str]) -> None:
    """Remove images and their kept bytes by id; all or none."""
    with catalog.transaction():
        records = {record.key: record for record in records_of(catalog.by_id, ids)}
        catalog.remove(list(records))
    catalog.sweep_kept([record.digest for record in records.values()])


def update(
    catalog: Catalog,
    ids: str | Iterable[str],
    metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    captions: str | Sequence[str | None] | None,
) -> None:
    """As :meth:`Retriever.update <zsqretrieval.retriever.Retriever.update>`."""
    with catalog.transaction():
        records = records_of(catalog.by_id, ids)
        if len({record.key for record in records}) < len(records):
            raise InvalidInputError("an id is given twice; nothing was changed")
        count = len(records)
        changes = _each(metadata, Mapping, "metadata", count)
        if notes := mended_json(changes)[1]:
            raise InvalidInputError(f"metadata has {notes[0].partition(', now')[0]}; nothing was changed")
        texts = None if captions is None else _each(captions, str, "captions", count)
        catalog.rename(
            [
                replace(
                    record,
                    caption=record.caption if texts is None else texts[n] or None,
                    metadata={
                        name: value
                        for name, value in {**record.metadata, **(changes[n] or {})}.items()
                        if value is not None or name not in (changes[n] or {})
                    },
                )
                for n, record in enumerate(records)
            ]
        )


def _each(given: Any, kind: type, name: str, count: int) -> list[Any]:
    """One value per image."""
    if given is None or isinstance(given, kind):
        return [given] * count
    if not isinstance(given, Sequence) or not all(one is None or isinstance(one, kind) for one in given):
        raise InvalidInputError(f"{name} must be one {kind.__name__}, or a list of them, not {shown(given)}")
    if len(given) != count:
        raise InvalidInputError(f"there are {count} ids, but {len(given)} {name}; nothing was changed")
    return list(given)
