"""Earlier days in the lab: the same steps as the operator's, and what they are worth before a crowd of every day."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import RECALL_AHEAD_S, RECALL_STEP_S, Earlier, Reading, Recalled
from bandkeeper.cli import main
from bandkeeper.lab import replay as replaying
from bandkeeper.lab.past import Past
from bandkeeper.lab.result import Result
from bandkeeper.lab.scrape import Scraper
from tests.unit.lab_histories import a_history
from tests.unit.test_cli_simulate import CHAT, SERVER
from tests.unit.test_lab_scrape import TRITON_SERVER, VLLM_SERVER, FakeFleet, play

DAY_S = Earlier.DAY.ago_s


def ends(day: Recalled) -> list[float]:
    """When the steps end, from now."""
    return [end_s - day.now_s for end_s in day.ends_s]


def a_past(hours: float, holes: range = range(0)) -> Past:
    """A step number of prompt tokens per second, half as many of output."""
    past = Past()
    for number in range(round(hours * 3600 / RECALL_STEP_S)):
        if number not in holes:
            past.add((number + 1) * RECALL_STEP_S, float(number), number / 2)
    return past


def test_earlier_days_are_known_as_far_as_they_go() -> None:
    past = a_past(200)
    assert past.recalled(DAY_S - RECALL_AHEAD_S) == {}
    first = past.recalled(DAY_S - RECALL_AHEAD_S + RECALL_STEP_S)[Earlier.DAY]
    assert (ends(first), first.prompt_per_s, first.output_per_s) == ([RECALL_AHEAD_S], (0.0,), (0.0,))
    found = past.recalled(7 * DAY_S + 15.0)
    assert found.keys() == {Earlier.DAY, Earlier.WEEK}
    assert found[Earlier.WEEK].prompt_per_s == tuple(map(float, range(20)))
    assert ends(found[Earlier.WEEK]) == [105.0 + 120 * number for number in range(20)]
    assert found[Earlier.DAY].prompt_per_s[0] == 6 * DAY_S / RECALL_STEP_S - 1


def test_a_hole_stays_a_hole() -> None:
    assert ends(a_past(26, holes=range(2, 5)).recalled(DAY_S)[Earlier.DAY])[:4] == [120.0, 240.0, 720.0, 840.0]


def test_the_scraper_adds_a_step_every_two_minutes_of_all_pods() -> None:
    fleet, scraper = FakeFleet("a", "b"), Scraper(VLLM_SERVER)
    for tick in range(1, 41):
        fleet.values["prompt_tokens"][:2] += 15 * 100.0
        fleet.values["generation_tokens"][:2] += 15 * 20.0
        play(scraper, fleet, 15.0 * tick)
    day = scraper.past.recalled(DAY_S + 300)[Earlier.DAY]
    assert ends(day) == [-60.0, 60.0, 180.0, 300.0]
    assert day.prompt_per_s == pytest.approx([200.0] * 4, rel=0.01)
    assert day.output_per_s == pytest.approx([40.0] * 4, rel=0.01)


def test_a_server_without_tokens_has_no_past() -> None:
    fleet, scraper = FakeFleet("a"), Scraper(TRITON_SERVER)
    play(scraper, fleet, 600.0)
    assert scraper.past.recalled(DAY_S + 300) == {}


def test_a_recording_is_its_own_past() -> None:
    history = a_history(minutes=10, darkness=range(9, 17))
    told = []
    for number, moment in enumerate(history.moments):
        readings = {pod.name: Reading(10.0 * number, 5.0) for pod in moment.snapshot.pods}
        tokens = {} if moment.dark else {Signal.PROMPT_TOKENS: readings, Signal.GENERATION_TOKENS: readings}
        told.append(replace(moment, snapshot=replace(moment.snapshot, by_pod=tokens)))
    day = replaying._past(replace(history, moments=tuple(told))).recalled(DAY_S)[Earlier.DAY]
    assert ends(day) == [120.0, 240.0, 360.0, 480.0, 600.0, 720.0]
    assert day.prompt_per_s[:3] == (4 * 35.0, 4 * 80.0, 4 * 200.0)  # of 8, 1 and 7 moments


def test_a_crowd_of_every_day_is_met_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Days of three hours, the crowd after two of them: what was seen then is forgotten when it comes again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Earlier, "ago_s", property(lambda one: 10_800.0 if one is Earlier.DAY else 1e9))
    Path("server.yaml").write_text(SERVER.replace("median_s: 30", "median_s: 120"))
    load = "daily-flash:low=0.6,high=3,period_s=10800,at_s=7200,jitter_s=20,hold_s=600,fall_s=60,duration_s=18900"
    run = ["simulate", "--policy", str(CHAT), "--server", "server.yaml", "--load", load, "--warmup", "10800"]
    found = {}
    for name, more in {"with": (), "without": ("--no-forecast",)}.items():
        assert main([*run, "--start", "2", *more, "--json", f"{name}.json"]) == 0, capsys.readouterr().err
        found[name] = Result.model_validate(json.loads(Path(f"{name}.json").read_text()))
    foretold = [move for move in found["with"].moves if move.reason == "DemandForeseen"]
    assert foretold
    assert 18_000 - 720 < foretold[0].at_s < 18_000 - 120
    assert not any(move.reason == "DemandForeseen" for move in found["without"].moves)
    missed = {name: 1 - (result.slos[0].attainment or 0.0) for name, result in found.items()}
    assert missed["with"] < missed["without"] / 4
