"""Marks of the broken parts in ``broken_encoders``, ``broken_indexes``, and so on."""

from __future__ import annotations


def caught_by(*checks):
    """Name the checks that must find the bug of a class."""

    def mark(kind):
        kind.caught_by = checks
        return kind

    return mark


def spoiled(base, **bugs):
    """Subclasses of ``base``, each with its own ``spoil`` and the checks that must find it."""
    return [
        type(name, (base,), {"spoil": staticmethod(spoil), "caught_by": checks})
        for name, (spoil, *checks) in bugs.items()
    ]
