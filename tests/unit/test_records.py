"""The records of a tick: as the standard ones but for the check of assignments, which is the type checker's."""

from __future__ import annotations

import dataclasses

import pytest

from bandkeeper.api.records import dataclass, replace


@dataclass(frozen=True, slots=True)
class Pair:
    left: int
    right: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Lone:
    only: tuple[int, ...] = ()


def test_records_are_equal_and_hashed_by_their_fields() -> None:
    assert Pair(1) == Pair(1, 2) != Pair(1, 3)
    assert len({Pair(1), Pair(1, 2), Pair(2)}) == 2
    assert dataclasses.asdict(Pair(1)) == {"left": 1, "right": 2}


def test_replace_makes_another_record_with_some_fields_changed() -> None:
    pair = Pair(1)
    assert replace(pair, right=5) == dataclasses.replace(pair, right=5) == Pair(1, 5)
    assert pair == Pair(1, 2)
    assert replace(Lone(only=(1,))) == Lone(only=(1,))
    assert replace(Lone(), only=(3,)) == Lone(only=(3,))


def test_a_field_that_the_record_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match="middle"):
        replace(Pair(1), middle=3)  # type: ignore[call-arg]


def test_mypy_refuses_an_assignment() -> None:
    """The comment is the test: mypy --strict fails where nothing is to be ignored."""
    pair = Pair(1)
    pair.left = 2  # type: ignore[misc]
