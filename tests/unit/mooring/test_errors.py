"""The tree of errors: every leaf has one HTTP and one gRPC status, and a code of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest

from mooring import errors
from mooring.errors import STATUS, InternalError, MooringError, error_from_code, retry_advice, status_of


def leaves(cls: type[MooringError]) -> Iterator[type[MooringError]]:
    """The classes of ``mooring.errors`` below ``cls`` that are raised: all but the three branches."""
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            if child not in (errors.CallerError, errors.TransientError, errors.OperatorError):
                yield child
            yield from leaves(child)


@pytest.mark.parametrize("cls", list(leaves(MooringError)), ids=lambda cls: cls.__name__)
def test_each_error_is_mapped_once_and_survives_the_wire(cls: type[MooringError]) -> None:
    status = STATUS[cls]
    assert 400 <= status.http < 600
    assert status.grpc in grpc.StatusCode.__members__
    assert cls.__name__ in errors.__all__
    again = error_from_code(cls.code, "why")
    assert type(again) is cls
    assert again.message == "why"


def test_codes_are_distinct() -> None:
    codes = [cls.code for cls in STATUS]
    assert len(set(codes)) == len(codes)


def test_callers_errors_are_4xx_and_ours_are_5xx() -> None:
    for cls, status in STATUS.items():
        if issubclass(cls, errors.CallerError):
            # 501 is for a call that the caller can leave out.
            assert status.http < 500 or status.http == 501
        if issubclass(cls, errors.TransientError):
            assert status.http in (429, 503, 504)


def test_an_unmapped_error_has_its_nearest_ancestors_status() -> None:
    class Special(errors.OverloadedError):
        pass

    assert status_of(Special("full")) == STATUS[errors.OverloadedError]
    assert status_of(MooringError("what")) == STATUS[InternalError]
    assert type(error_from_code("a code of tomorrow", "x")) is InternalError


def test_the_drawing_of_the_tree_shows_every_error_below_its_parent() -> None:
    drawn: dict[str, str] = {}
    ancestors: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if (found := re.match(r"( {4}[│├└─ ]*)(\w+Error)\b", line)) is None:
            continue
        depth = (len(found[1]) - 4) // 4
        del ancestors[depth:]
        drawn[found[2]] = ancestors[-1] if ancestors else ""
        ancestors.append(found[2])
    classes = {cls: cls.__base__ for cls in vars(errors).values() if _is_error(cls)}
    parents = {cls.__name__: parent.__name__ for cls, parent in classes.items() if cls is not MooringError}
    assert drawn == {"MooringError": "", **parents}
    assert drawn.keys() <= set(errors.__all__)


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, MooringError)


def test_advice_says_when_to_come_again_in_whole_seconds_and_in_milliseconds() -> None:
    assert retry_advice(errors.OverloadedError("full")) == {}
    for seconds, told in ((2.0004, ("3", "2001")), (0.05, ("1", "50")), (0.0, ("1", "0"))):
        advice = retry_advice(errors.RateLimitError("full", retry_after_s=seconds))
        assert advice == {"retry-after": told[0], "retry-after-ms": told[1]}
    hopeless = errors.OverloadedError("late", predicted_wait_s=1.5, should_retry=False)
    assert retry_advice(hopeless) == {"x-should-retry": "false"}
    assert hopeless.predicted_wait_ms == 1500
