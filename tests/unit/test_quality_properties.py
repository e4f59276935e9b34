"""What holds of every judgement, whatever the counters show."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bandkeeper.quality.assess import assess
from bandkeeper.quality.types import Assessment, Component, Counters, Evidence, Kind, Memory, Quality, Thresholds

DEFAULT = Thresholds()
OPTIONAL = sorted(each.name for each in fields(Counters) if each.type == "float | None")
RATIOS = {name for name in OPTIONAL if name.endswith(("_active", "_utilization", "_throttled", "_occupancy"))}
OF_EVIDENCE = ("waiting", "throughput", "offered", "losses", "latency_cv", "mu", "batch_gain")
CORE = ("gr_engine_active", "tensor_active", "dram_active")
REMOVED = st.one_of(st.sampled_from(OPTIONAL), st.sampled_from(CORE))
A_RATIO = st.floats(0, 1)
AMOUNT = 1e12
ODD = st.one_of(st.floats(), st.sampled_from([-1.0, 1.5, 1e15]))


@st.composite
def counters(draw: st.DrawFn, *, odd: bool) -> Counters:
    """A pod's counters, most of them missing; `odd` ones may be anything."""
    names = (*CORE, *draw(st.lists(st.sampled_from(OPTIONAL), max_size=8, unique=True)))
    values: dict[str, Any] = {}
    for name in names[draw(st.integers(0, 1)) :]:
        value = draw(st.one_of(A_RATIO, A_RATIO, ODD) if odd else A_RATIO)
        values[name] = value if name in RATIOS else value * AMOUNT
    return Counters(
        age_s=draw(st.floats(0, 120)),
        gpus=draw(st.integers(1, 8)),
        model=draw(st.sampled_from([None, "NVIDIA H100 80GB HBM3", "Tesla T4", "X1"])),
        mig=draw(st.booleans()),
        shared=odd and draw(st.integers(0, 5)) == 5,
        job=draw(st.sampled_from([None, "a"])),
        **values,
    )


def evidence(*, odd: bool) -> st.SearchStrategy[Evidence]:
    rate = st.one_of(st.none(), st.floats(0, 1e4))
    return st.builds(
        Evidence,
        pods=st.dictionaries(st.sampled_from(["p0", "p1"]), counters(odd=odd), max_size=2),
        ready=st.integers(0, 4),
        kind=st.sampled_from(Kind),
        below_knee=st.sampled_from([None, True, False]),
        replicas_needed=st.one_of(st.none(), st.integers(0, 5)),
        slo_unreachable=st.sampled_from([None, True]),
        prefill_tails=st.sampled_from([None, True]),
        **dict.fromkeys(OF_EVIDENCE, rate),
    )


@st.composite
def plain(draw: st.DrawFn) -> Counters:
    """A pod whose GPU counters agree with each other and are fresh, other counters missing or not."""
    busy = draw(st.one_of(st.just(1.0), A_RATIO))
    inside = st.floats(0, busy)
    found = draw(counters(odd=False))
    return replace(
        found,
        age_s=min(found.age_s, DEFAULT.max_age_s),
        gpu_utilization=draw(st.sampled_from([None, busy, min(1.0, busy + 0.1)])),
        gr_engine_active=busy,
        tensor_active=draw(inside),
        sm_active=draw(st.one_of(st.none(), st.floats(0.01, 1))),
        dram_active=draw(st.one_of(st.none(), inside, inside)),
        fp64_active=draw(st.one_of(st.none(), inside)),
        fp32_active=draw(st.one_of(st.none(), inside)),
        fp16_active=draw(st.one_of(st.none(), inside)),
    )


def without(counted: Counters, name: str) -> Counters:
    """The same with one reading missing."""
    change: dict[str, Any] = {name: None}
    return replace(counted, **change)


def judge(seen: Evidence) -> Assessment:
    return assess(seen, Memory(), 0.0)[0]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(evidence(odd=True), st.floats(1, 200)), min_size=1, max_size=3))
def test_figures_stay_within_their_bounds(steps: list[tuple[Evidence, float]]) -> None:
    memory, now_s = Memory(), 0.0
    for seen, later_s in steps:
        now_s += later_s
        found, memory = assess(seen, memory, now_s)
        assert found.score is None or 0 <= found.score <= 100
        assert 0 <= found.confidence <= 1
        assert (found.quality is Quality.UNKNOWN) == bool(found.reason)
        assert found.quality is not Quality.UNKNOWN or (found.score, found.waste, found.confidence) == (None, None, 0)
        if found.waste is not None:
            assert found.waste.idle >= 0
            assert found.waste.below >= 0
            assert found.waste.share <= 1 + 1e-9
        assert all(one.evidence for one in found.advice)
        assert len({one.remedy for one in found.advice}) == len(found.advice)
        if found.bottleneck is not None and found.bottleneck.used is not None:
            assert 0 <= found.bottleneck.used <= 1


@settings(max_examples=200, deadline=None)
@given(evidence(odd=True), evidence(odd=True))
def test_the_same_evidence_gives_the_same_judgement(first: Evidence, then: Evidence) -> None:
    def run() -> tuple[object, ...]:
        found, memory = assess(first, Memory(), 0.0)
        return found, memory, assess(then, memory, 60.0)

    assert repr(run()) == repr(run())  # NaN is not equal to itself


@settings(max_examples=300, deadline=None)
@given(st.lists(plain(), min_size=1, max_size=2), evidence(odd=False), st.data())
def test_missing_data_never_makes_more_confident(each: list[Counters], rest: Evidence, data: st.DataObject) -> None:
    seen = replace(rest, pods={f"p{number}": one for number, one in enumerate(each)})
    before = judge(seen)
    assume(before.quality is not Quality.UNKNOWN)
    if data.draw(st.booleans()):
        pod = data.draw(st.sampled_from(sorted(seen.pods)))
        fewer = replace(seen, pods={**seen.pods, pod: without(seen.pods[pod], data.draw(REMOVED))})
    else:
        change: dict[str, Any] = {data.draw(st.sampled_from(OF_EVIDENCE)): None}
        fewer = replace(seen, **change)
    assert judge(fewer).confidence <= before.confidence + 1e-9


def test_missing_work_of_the_few_that_show_it_does_not_either() -> None:
    many = Counters(gpus=4, gr_engine_active=0.1)
    few = Counters(gpus=1, gr_engine_active=0.1, tensor_active=0.0, dram_active=0.1)
    before = judge(Evidence(pods={"many": many, "few": few}, ready=2))
    after = judge(Evidence(pods={"many": many, "few": without(few, "dram_active")}, ready=2))
    assert before.quality is after.quality is Quality.UNDERUSED
    assert after.confidence < before.confidence


@settings(max_examples=300, deadline=None)
@given(evidence(odd=False), st.sampled_from(["tensor_active", "dram_active"]))
def test_work_that_is_not_seen_is_not_taken_for_none(seen: Evidence, name: str) -> None:
    """A GPU that is busy with who knows what is Unknown, never Inefficient."""
    blind = replace(seen, pods={pod: without(each, name) for pod, each in seen.pods.items()})
    found = judge(blind)
    assert found.quality in (Quality.UNKNOWN, Quality.UNDERUSED)
    assert found.score is None
    assert found.lower is None


@settings(max_examples=200, deadline=None)
@given(evidence(odd=False))
def test_a_queue_that_is_not_seen_is_not_taken_for_empty(seen: Evidence) -> None:
    found = judge(replace(seen, waiting=None)).bottleneck
    assert found is None or found.component not in (Component.DEMAND, Component.QUEUE)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([Kind.LLM_SERVING, Kind.TRAINING]),
    st.sampled_from(
        [(0.5, 0.0, 0.2), (0.7, 0.1, 0.1), (1.0, 0.2, 0.15), (1.0, 0.05, 0.3), (1.0, 0.1, 0.6), (0.7, 0.1, 0.42)]
    ),
    st.floats(-0.02, 0.02),
    st.floats(0, 1),
    st.lists(st.booleans(), min_size=20, max_size=30),
)
def test_noise_does_not_flap(
    kind: Kind, figures: tuple[float, float, float], beside: float, amplitude: float, ups: list[bool]
) -> None:
    """Each of the four bounds is crossed at most once by figures that wander less than the margins are apart.

    They are put near the bounds, relative to peaks, and swing up and down from one collection to the next.
    """
    busy, compute, memory = figures
    remembered, seen = Memory(), []
    for number, up in enumerate(ups):
        swing = amplitude * (1 if up == bool(number % 2) else -1)
        pod = Counters(
            age_s=1.0,
            gr_engine_active=min(1.0, busy + 0.008 * swing),
            tensor_active=max(0.0, DEFAULT.tensor_peak * (compute + 0.006 * busy * swing)),
            dram_active=DEFAULT.dram_peak * (memory + beside + 0.006 * busy * swing),
            fp32_active=0.0,
        )
        remembered = assess(Evidence(pods={"p": pod}, ready=1, kind=kind), remembered, 60.0 * number)[1]
        seen.append(remembered.quality)
    assert sum(one is not other for one, other in pairwise(seen)) <= 4, seen
