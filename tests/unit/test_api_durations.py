"""Durations are read as Go reads them, and written so that they read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("+0", 0.0),
        ("5s", 5.0),
        ("-5s", -5.0),
        ("+1m30s", 90.0),
        ("1h0.5m", 3630.0),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("7500us", 0.0075),
        ("900µs", 0.0009),
        ("900μs", 0.0009),
        ("1ns", 1e-9),
        ("0.1ns", 0.0),
        ("-9223372036854775808ns", -9223372036.854775808),
    ],
)
def test_reads(text: str, seconds: float) -> None:
    assert durations.parse(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "5",
        ".",
        ".s",
        "s",
        "1d",
        "1S",
        "1 s",
        " 1s",
        "1s ",
        "1s\n",
        "--1s",
        "1-s",
        "1..s",
        "1.0.s",
        "٥s",
        "00",
        "1e3s",
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        durations.parse(text)


@pytest.mark.parametrize("text", ["9223372036854775808ns", "-9223372036854775809ns", "2562048h"])
def test_refuses_what_64_bits_of_nanoseconds_cannot_hold(text: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        durations.parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0us"),
        (0.0075, "7.5ms"),
        (0.00005, "50us"),
        (0.061, "61ms"),
        (0.9994, "999ms"),
        (0.9996, "1s"),
        (1.25, "1.25s"),
        (96.0, "96s"),
        (119.9, "120s"),
        (300.0, "5m0s"),
        (3725.4, "1h2m5s"),
    ],
)
def test_writes(seconds: float, text: str) -> None:
    assert durations.text(seconds) == text


@given(st.floats(min_value=1e-7, max_value=1e6))
def test_what_is_written_reads_back(seconds: float) -> None:
    assert durations.parse(durations.text(seconds)) == pytest.approx(seconds, rel=0.006, abs=1e-9)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_writes_no_nonsense(seconds: float) -> None:
    with pytest.raises(ValueError, match="not a length of time"):
        durations.text(seconds)
