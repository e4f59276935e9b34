"""What a person asks of another load: read as it is meant, or refused with what to write."""

from __future__ import annotations

import pytest

from bandkeeper.lab.changes import ChangeError, parse, parse_traffic
from bandkeeper.model.latency import Traffic

NOW = Traffic(requests_per_s=10.0, prompt_tokens=1000.0, output_tokens=200.0)


@pytest.mark.parametrize(
    ("texts", "want"),
    [
        ([], (10.0, 1000.0, 200.0)),
        (["load=2x"], (20.0, 1000.0, 200.0)),
        (["load=40/s"], (40.0, 1000.0, 200.0)),
        (["load=.5x"], (5.0, 1000.0, 200.0)),
        (["prompt=2x,output=0.5x"], (10.0, 2000.0, 100.0)),
        (["prompt=1500", "output = 64"], (10.0, 1500.0, 64.0)),
        (["output=0.001x"], (10.0, 1000.0, 1.0)),  # an answer has a token
    ],
)
def test_what_is_asked_becomes_traffic(texts: list[str], want: tuple[float, float, float]) -> None:
    found = parse(texts).applied(NOW)
    assert (found.requests_per_s, found.prompt_tokens, found.output_tokens) == want


def test_a_point_to_look_at_changes_no_traffic() -> None:
    asked = parse(["replicas=8", "cap=64"])
    assert (asked.replicas, asked.cap, asked.told) == (8, 64, "replicas=8, cap=64")
    assert asked.applied(NOW) == NOW


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("laod=2x", "did you mean load?"),
        ("colour=red", "write load=2x, or load=40/s for requests per second; prompt=2x"),
        ("", "write load=2x"),
        ("load", "write load=2x, or load=40/s"),
        ("load=", "write load=2x, or load=40/s"),
        ("load=40", "write load=2x, or load=40/s"),  # times, or per second?
        ("load=0x", "write load=2x"),
        ("load=-2x", "write load=2x"),
        ("load=1e9x", "write load=2x"),
        ("load=nanx", "write load=2x"),
        ("prompt=4/s", "write prompt=2x, or prompt=1500"),
        ("replicas=2x", "write replicas=8"),
        ("replicas=0", "write replicas=8"),
        ("replicas=" + 5000 * "9", "write replicas=8"),
        ("cap=1.5", "write cap=64"),
        ("load=2x,load=3x", "load is given twice"),
    ],
)
def test_what_is_not_meant_gets_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ChangeError) as error:
        parse([text])
    assert sentence in str(error.value)


def test_traffic_is_a_rate_and_two_lengths() -> None:
    assert parse_traffic("12/s:1000:180") == Traffic(12.0, 1000.0, 180.0)


@pytest.mark.parametrize("text", ["", "12:1000:180", "12/s", "12/s:1000", "2x:1000:180", "12/s:0:180", "12/s:1000:0.5"])
def test_traffic_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ChangeError, match="such as 12/s:1000:180"):
        parse_traffic(text)
