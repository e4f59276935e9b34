"""Synthetic loads: levels in replicas' work, arrivals, lengths, and what a mistake is told."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bandkeeper.lab.requests import Requests, Seconds
from bandkeeper.lab.server import ContinuousServer, Server, load, parse
from bandkeeper.lab.workloads import LoadError, synthetic
from bandkeeper.lab.workloads.synthetic import MATRIX, make

REFERENCE = load("reference")
PER_S = REFERENCE.sustainable_per_s(1155, 211)


def requests_of(text: str, *, seed: int = 1, max_replicas: int = 20, server: Server = REFERENCE) -> Requests:
    return make(text, server, seed=seed, max_replicas=max_replicas)


def work(requests: Requests, from_s: float, to_s: float, per_s: float = PER_S) -> float:
    """Replicas' work that arrived between two times."""
    return float(counts(requests.arrival_s, [from_s, to_s])[0]) / (to_s - from_s) / per_s


def counts(arrival_s: Seconds, edges: list[float] | Seconds) -> npt.NDArray[np.float64]:
    return np.histogram(arrival_s, edges)[0].astype(np.float64)


def dispersion(values: npt.NDArray[np.float64]) -> float:
    return float(values.var() / values.mean())


@pytest.mark.parametrize("text", [*synthetic.names(), *MATRIX.values()])
def test_every_load_is_in_order_and_the_same_for_the_same_seed(text: str) -> None:
    text = text if "duration_s" in text else text + (",duration_s=1800" if ":" in text else ":duration_s=1800")
    one, same, other = requests_of(text), requests_of(text), requests_of(text, seed=2)
    assert one.arrival_s.tobytes() == same.arrival_s.tobytes()
    assert one.prompt_tokens.tobytes() == same.prompt_tokens.tobytes()
    assert one.output_tokens.tobytes() == same.output_tokens.tobytes()
    assert one.output_tokens.tobytes() != other.output_tokens.tobytes()
    assert one.arrival_s[-1] < one.duration_s
    assert min(one.prompt_tokens.min(), one.output_tokens.min()) >= 1
    assert one.name == text


def test_variants_are_other_draws() -> None:
    assert len(requests_of(MATRIX["mmpp-1"])) != len(requests_of(MATRIX["mmpp-2"]))


@pytest.mark.parametrize(
    ("text", "from_s", "to_s", "level"),
    [
        ("steady:level=4", 0, 3600, 4),
        ("poisson:level=4", 0, 3600, 4),
        ("poisson", 0, 3600, 10),  # half of the most replicas
        ("ramp:low=3,high=18", 0, 900, 3),
        ("ramp:low=3,high=18", 1700, 1900, 10.5),
        ("ramp:low=3,high=18", 2700, 3600, 18),
        ("ramp", 0, 900, 3),  # 0.15 x the most
        ("ramp", 2700, 3600, 16),  # 0.8 x the most
        ("waves:low=0,high=20,period_s=1200", 0, 60, 0.1),
        ("waves:low=0,high=20,period_s=1200", 570, 630, 20),
        ("waves:low=0,high=20,period_s=1200", 1770, 1830, 20),
        ("flash:low=4,high=16", 0, 1800, 4),
        ("flash:low=4,high=16", 1815, 2535, 16),
        ("flash:low=4,high=16", 2900, 3600, 4),
        ("diurnal:low=2,high=18,duration_s=7200", 1100, 1300, 2),  # four in the morning
        ("diurnal:low=2,high=18,duration_s=7200", 3270, 3330, 18),  # eleven
        ("diurnal:low=2,high=18,duration_s=7200,period_s=3600", 5230, 5270, 18),
    ],
)
def test_levels_are_replicas_work(text: str, from_s: float, to_s: float, level: float) -> None:
    expected = level * (to_s - from_s) * PER_S
    assert work(requests_of(text), from_s, to_s) == pytest.approx(level, abs=4 * level / expected**0.5 + 0.05)


@pytest.mark.parametrize("server", [load("resnet50-t4"), load("llama-3.1-8b-h100")])
def test_a_replicas_work_is_the_servers(server: Server) -> None:
    one = requests_of("poisson:level=0.5,duration_s=60", server=server)
    assert len(one) == pytest.approx(30 * server.sustainable_per_s(1155, 211), rel=0.05)


def test_bursts_jump_between_two_levels_for_random_times() -> None:
    bursts = requests_of("mmpp:low=2,high=18,calm_s=300,burst_s=100,duration_s=40000")
    levels = counts(bursts.arrival_s, np.arange(0.0, 40001.0, 20.0)) / 20 / PER_S
    high = levels > 10
    assert levels[high].mean() == pytest.approx(18, rel=0.06)  # a window with a jump in it lies between
    assert levels[~high].mean() == pytest.approx(2, rel=0.2)
    assert high.mean() == pytest.approx(100 / 400, abs=0.06)


def test_random_arrivals_are_poisson_and_steady_ones_even() -> None:
    poisson = np.diff(requests_of("poisson:level=5").arrival_s)
    assert poisson.std() / poisson.mean() == pytest.approx(1, rel=0.03)
    assert dispersion(counts(requests_of("poisson:level=5").arrival_s, np.arange(0.0, 3601.0))) == pytest.approx(
        1, rel=0.1
    )
    steady = np.diff(requests_of("steady:level=5").arrival_s)
    assert steady.min() == pytest.approx(steady.max(), rel=1e-6)


def test_lengths_are_those_of_the_conversation_trace() -> None:
    one = requests_of("poisson:level=20")
    assert (one.mean_prompt_tokens, one.mean_output_tokens) == pytest.approx((1155, 211), rel=0.01)
    assert np.percentile(one.prompt_tokens, 99) == pytest.approx(4142, rel=0.03)
    assert np.percentile(one.output_tokens, 99) == pytest.approx(601, rel=0.03)


@pytest.mark.parametrize(("name", "prompt", "output"), [("decode", 200, 600), ("prefill", 4000, 60)])
def test_lengths_of_the_loads_that_stress_one_phase(name: str, prompt: float, output: float) -> None:
    one = requests_of(name)
    assert (one.mean_prompt_tokens, one.mean_output_tokens) == pytest.approx((prompt, output), rel=0.02)
    mean = 0.15 * 20 + (0.8 - 0.15) * 20 / 3  # a third of the time in bursts
    assert work(one, 0, 3600, REFERENCE.sustainable_per_s(prompt, output)) == pytest.approx(mean, rel=0.3)


def test_lengths_drift_while_the_rate_stays() -> None:
    one = requests_of("drift:level=7,prompt_end_tokens=2400,output_end_tokens=420")
    first, last = one.arrival_s < 360, one.arrival_s > 3240
    assert one.prompt_tokens[first].mean() == pytest.approx(1155 + 0.05 * 1245, rel=0.05)
    assert one.prompt_tokens[last].mean() == pytest.approx(1155 + 0.95 * 1245, rel=0.05)
    assert one.output_tokens[last].mean() == pytest.approx(211 + 0.95 * 209, rel=0.05)
    assert first.sum() == pytest.approx(last.sum(), rel=0.06)
    at_the_end = 7 * PER_S / REFERENCE.sustainable_per_s(2400, 420)
    assert f"the work goes from 7 to {at_the_end:.3g} replicas" in one.notes


def test_heavy_tails_keep_the_mean_and_reach_far() -> None:
    one = requests_of("heavy:level=20,tail=1.5")
    assert (one.mean_prompt_tokens, one.mean_output_tokens) == pytest.approx((1155, 211), rel=0.03)
    assert one.prompt_tokens.max() <= 32768
    assert one.output_tokens.max() <= 8192
    assert np.percentile(one.prompt_tokens, 50) < 500
    assert np.percentile(one.prompt_tokens, 99) > 9000
    # The survival of a power law: three times as long is 3^-1.5 as frequent, less what the bound cuts.
    long = (one.prompt_tokens > 3000).mean() / (one.prompt_tokens > 9000).mean()
    assert long == pytest.approx(3**1.5, rel=0.35)


def test_requests_that_the_server_could_never_hold_are_shortened_and_counted() -> None:
    assert isinstance(REFERENCE, ContinuousServer)
    small = REFERENCE.model_copy(update={"kv_tokens": 2000})
    one = make("poisson:level=1", small, seed=1, max_replicas=20)
    assert (one.prompt_tokens + one.output_tokens).max() == 2000
    shortened = [note for note in one.notes if "shortened to fit" in note]
    assert len(shortened) == 1
    assert int(shortened[0].split()[0]) > 100


def test_a_load_beyond_the_policys_bound_says_so() -> None:
    assert not any("allows" in note for note in requests_of("ramp:low=3,high=18").notes)
    assert any(
        "up to 18 replicas' work, the policy allows 10" in note
        for note in requests_of("ramp:low=3,high=18", max_replicas=10).notes
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wave", r"no load 'wave' \(did you mean waves\?\)(.|\n)*diurnal +a working day"),
        ("", "no load ''(.|\n)*steady "),
        ("waves:perod_s=3", r"no key 'perod_s' \(did you mean period_s\?\)(.|\n)*period_s .*\[s; default 1200\]"),
        ("waves:high", "high= is not a number"),
        ("waves:high=many", r"high=many is not a number \(replicas' work\)"),
        ("waves:high=nan", "high=nan is not possible: give a number from 0"),
        ("waves:high=inf", "high=inf is not possible"),
        ("waves:high=-1", "high=-1 is not possible"),
        ("waves:high=1,high=2", "high is given twice"),
        ("waves:low=9,high=2", r"low \(9\) is above high \(2\)"),
        ("waves:period_s=0", r"period_s=0 is not possible: give a number from 1 to 2.6784e\+06 \(s\)"),
        ("mmpp:variant=1.5", "not a whole number"),
        ("heavy:max_prompt_tokens=2000", "must be at least 4 x prompt_tokens"),
        ("steady:level=0", "no request comes in 3600 s"),
        ("diurnal:high=20000", "give a duration_s below 265 or lower levels"),
    ],
)
def test_a_mistake_is_told_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        requests_of(text)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(LoadError, match="seed -1 is negative"):
        requests_of("poisson", seed=-1)


def test_every_load_and_key_is_described() -> None:
    for name, what in synthetic.names().items():
        assert len(what) > 20
        for key, one in synthetic.keys(name).items():
            assert one.what
            assert one.unit or key.endswith("spread") or key in ("variant", "tail")
    assert str(synthetic.keys("ramp")["rise_s"]) == "how long it takes [s; default 0.5 x duration_s]"
    assert "default 600]" in str(synthetic.keys("decode")["output_tokens"])


def test_the_matrix_holds_the_evidences_workloads() -> None:
    assert len(MATRIX) >= 12
    highest = {
        name: counts(requests_of(text, max_replicas=64).arrival_s, np.arange(0.0, 1e4, 60.0)).max() / 60
        for name, text in MATRIX.items()
        if name.startswith(("waves", "ramp", "flash"))
    }
    top = {"waves-5m": 20, "waves-10m": 20, "waves-20m": 20, "waves-40m": 20, "ramp": 18, "flash": 16}
    assert {name: rate / PER_S for name, rate in highest.items()} == pytest.approx(top, rel=0.15)


def test_a_server_file_without_tokens_takes_loads_too() -> None:
    server = parse(
        {"kind": "dynamic", "model": "m", "gpu": "g", "source": "here", "batch_max": 4, "batch_ms": {1: 10, 4: 20}}
    )
    assert len(requests_of("poisson:level=1,duration_s=100", server=server)) == pytest.approx(20000, rel=0.03)
