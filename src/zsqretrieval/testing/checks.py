"""Contract checks, and their two front ends: a script and pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from pytest import MarkDecorator

Factory = TypeVar("Factory")
Subject = TypeVar("Subject")
Answer = TypeVar("Answer")


class ContractError(AssertionError):
    """An object breaks its contract.

    Attributes:
        failures: the error of every failed check, by the check's name.
    """

    def __init__(self, message: str, failures: Mapping[str, Exception] | None = None) -> None:
        super().__init__(message)
        self.failures = dict(failures or {})


@dataclass(frozen=True, slots=True)
class Check(Generic[Factory]):
    """One promise of a contract."""

    name: str  # in ``expected_failures`` and reports
    promise: str  # one sentence
    verify: Callable[[Factory], None]  # raises if objects of the factory break the promise

    def __call__(self, factory: Factory) -> None:
        """Verify the promise on objects of ``factory``.

        Raises:
            ContractError: the promise is broken, or the object raised an error in a valid call.
        """
        try:
            self.verify(factory)
        except Exception as error:
            reason = str(error) if isinstance(error, ContractError) else f"raised {_describe(error)}"
            raise ContractError(f"{self.name}: {self.promise} {reason}", {self.name: error}) from error


def expect(condition: object, expected: str, got: object) -> None:
    """Check a condition; if it is false, raise ``ContractError("Expected ...; got ...")``."""
    if not condition:
        raise ContractError(f"Expected {expected}; got {_shortened(str(got))}.")


def expect_refusal(
    action: Callable[[], object],
    what: str,
    error: type[Exception] | tuple[type[Exception], ...] = ValueError,
    *,
    naming: str = "",
) -> None:
    """Check that an invalid call raises ``error`` with ``naming`` in its text; ``what`` names the input."""
    types = error if isinstance(error, tuple) else (error,)
    names = " or ".join(each.__name__ for each in types)
    try:
        action()
    except types as refusal:
        expect(naming in str(refusal), f"an error naming {naming!r}", repr(str(refusal)))
    except Exception as other:
        raise ContractError(f"Expected {names} for {what}; got {_describe(other)}.") from other
    else:
        raise ContractError(f"Expected {names} for {what}; got no error.")


def expect_accepted(call: Callable[[], Answer], answer: str, what: str) -> Answer:
    """Return what a call with valid input returns."""
    try:
        return call()
    except Exception as error:
        raise ContractError(f"Expected {answer} for {what}; got {_describe(error)}.") from error


def run_checks(checks: Sequence[Check[Factory]], factory: Factory) -> None:
    """Run every check, then report all that failed in one ContractError, a line for each."""
    failures: dict[str, Exception] = {}
    for check in checks:
        try:
            check(factory)
        except ContractError as error:
            failures[check.name] = error
    if failures:
        lines = "".join(f"\n  - {error}" for error in failures.values())
        raise ContractError(f"{len(failures)} of {len(checks)} checks failed:{lines}", failures)


def parametrize_checks(
    checks: Sequence[Check[Factory]],
    factory: Factory,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> MarkDecorator:
    """Make one pytest case of every check; the decorated test takes an argument ``check`` and calls it.

    Args:
        checks: ``encoder_checks``, ``index_checks``, ``generator_checks``, or a part of one.
        factory: makes the objects under test: ``make_index(dim, fingerprint="")`` for an index, a function
            without arguments for an encoder or a generator. Each check calls it once or more, so cache
            objects that are slow to build (``functools.cache``).
        expected_failures: reasons by check name. Such a check is a strict xfail: once it passes, remove its
            entry.

    Raises:
        ValueError: ``expected_failures`` names an unknown check.
    """
    import pytest  # only this function needs it

    reasons = dict(expected_failures or {})
    if unknown := sorted(reasons.keys() - {check.name for check in checks}):
        raise ValueError(
            f"expected_failures names no such check: {', '.join(unknown)}; "
            f"the checks are {', '.join(check.name for check in checks)}"
        )
    cases: list[Any] = []
    for check in checks:
        reason = reasons.get(check.name)
        marks = () if reason is None else pytest.mark.xfail(raises=ContractError, reason=reason, strict=True)
        cases.append(pytest.param(partial(check, factory), id=check.name, marks=marks))
    return pytest.mark.parametrize("check", cases)


def lister(
    checks: list[Check[Factory]], subject: Callable[[Factory], Subject]
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """A decorator that appends a function as a check of what ``subject`` makes of a factory.

    The first line of its docstring is the promise.
    """

    def listed(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        def verify(factory: Factory) -> None:
            function(subject(factory))

        promise = (function.__doc__ or "").strip().splitlines()[0]
        checks.append(Check(function.__name__, promise, verify))
        return function

    return listed


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _shortened(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
