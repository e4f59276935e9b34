"""What the replicas are held for: what would not be held, had one rule alone been left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.attribution import attribute, remember
from bandkeeper.decide.decision import RULES, Held
from bandkeeper.decide.engine import decide
from bandkeeper.decide.policy import Policy
from bandkeeper.decide.state import NOTHING_ASKED, ScaleMemory, State
from bandkeeper.model.peaks import NO_PEAKS
from tests.unit.builders import a_policy, a_snapshot, a_target, rules
from tests.unit.test_decide_size import a_demand

BARE = 1.08


def modelled(work: float, **more: Any) -> Any:
    margin = more.get("margin", BARE)
    return a_demand(work, **{"modelled": True, "margin": margin, "present_margin": margin, "bare_margin": BARE, **more})


def held(
    *looks: Any,
    current: int,
    policy: Policy | None = None,
    promised: int = 0,
    queue: int = 0,
    bound: bool = False,
) -> Held:
    """After looks 15 s apart; what a promise and a queue ask for, they ask for at the last one."""
    policy = policy or a_policy(replicas=(1, 64))
    window_s = policy.scale_down.stabilization_s
    asked, now_s = NOTHING_ASKED, 0.0
    for demand in looks:
        asked, now_s = remember(policy, demand, asked, now_s), now_s + 15.0
    scale = ScaleMemory(
        asked=asked,
        needs=NO_PEAKS.push(float(promised), now_s, window_s),
        queues=NO_PEAKS.push(float(queue), now_s, window_s),
    )
    return attribute(policy, looks[-1], scale, current=current, promised=promised, queue=queue, bound=bound)


def saved(found: Held) -> dict[str, float]:
    """What is not nothing, but for the work."""
    return {rule: figure for rule, figure in found.by_rule() if rule != "work" and figure}


CASES: list[tuple[str, Held, dict[str, float]]] = [
    ("the band alone", held(modelled(7.0), current=10), {"band": 2}),  # 7 / 0.7 = 10, 7 x 1.08 = 7.6
    ("the band's low edge", held(modelled(6.8), current=11), {"band": 3}),  # 6.8 / 11 is inside it
    ("a promise alone", held(modelled(7.0, margin=2.0), current=14), {"slo": 4}),
    ("promise and band ask for the same", held(modelled(7.0, margin=10 / 7), current=10), {}),
    ("peaks alone", held(modelled(4.0, peak=10.0), current=11), {"peak": 5}),  # 10.8 against 4 / 0.7 = 5.7
    (
        "peaks that spare a margin",  # 10.8 against 4 x 2
        held(modelled(4.0, peak=10.0, present_margin=2.0), current=11),
        {"peak": 3},
    ),
    ("peaks that spare more than they cost", held(modelled(4.0, peak=5.0, present_margin=2.0), current=6), {}),
    ("peaks and promise together", held(modelled(4.0, peak=10.0, margin=1.5), current=15), {"slo": 4, "peak": 9}),
    ("a queue", held(modelled(2.0), current=6, queue=6), {"queue": 3}),
    ("a broken promise", held(modelled(2.0), current=6, promised=6), {"slo": 3}),
    ("replicas.min", held(modelled(0.5), current=4, policy=a_policy(replicas=(4, 9))), {"min": 3}),
    ("nothing asks any more", held(modelled(2.0), current=8), {"hold": 5}),
    ("a promise forbids to let go", held(modelled(2.0), current=8, bound=True), {"slo": 5}),
    (
        "the window holds what the band asked for",
        held(modelled(7.0), modelled(1.0), current=10),
        {"band": 2, "hold": 8},
    ),
    ("without a model", held(a_demand(7.0), current=10), {"band": 3}),
    ("more is asked for than there is", held(modelled(30.0), current=8), {}),
]


@pytest.mark.parametrize(("name", "found", "want"), CASES, ids=[case[0] for case in CASES])
def test_what_one_rule_alone_costs(name: str, found: Held, want: dict[str, float]) -> None:
    assert saved(found) == want


def test_the_work_keeps_its_fraction_and_is_no_more_than_is_held() -> None:
    assert held(modelled(2.5), current=4).work == 2.5
    assert held(modelled(30.0), current=4).work == 4.0


def test_what_was_asked_for_counts_for_the_scale_down_window_and_no_longer() -> None:
    policy = a_policy(replicas=(1, 64), scale_down=rules(window_s=60.0))
    before, now = modelled(4.0, margin=2.0), modelled(1.0)
    assert held(before, *[now] * 4, current=8, policy=policy).slo == 2
    assert held(before, *[now] * 8, current=8, policy=policy).slo == 0


works = st.floats(0.0, 60.0)
factors = st.floats(1.0, 4.0)


@st.composite
def demands(draw: st.DrawFn) -> Any:
    work = draw(works)
    if not draw(st.booleans()):
        return a_demand(work)
    bare = draw(st.floats(1.0, 1.5))
    return a_demand(
        work,
        peak=work * draw(factors),
        modelled=True,
        bare_margin=bare,
        margin=min(4.0, bare * draw(factors)),
        present_margin=min(4.0, bare * draw(factors)),
    )


@given(
    st.lists(demands(), min_size=1, max_size=12),
    st.integers(1, 64),
    st.integers(1, 8),
    st.sampled_from(Objective),
    st.integers(0, 80),
    st.integers(0, 80),
    st.booleans(),
)
def test_no_rule_costs_less_than_nothing_or_more_than_is_held(
    looks: list[Any], current: int, least: int, objective: Objective, promised: int, queue: int, bound: bool
) -> None:
    policy = a_policy(objective, replicas=(least, 64))
    found = held(*looks, current=current, policy=policy, promised=promised, queue=queue, bound=bound)
    assert [rule for rule, _ in found.by_rule()] == list(RULES)
    assert all(0 <= figure <= current for _, figure in found.by_rule())
    assert found.replicas == current


@given(st.lists(demands(), min_size=1, max_size=6), st.integers(1, 64))
def test_without_promises_and_peaks_neither_costs_anything(looks: list[Any], current: int) -> None:
    plain = [replace(one, margin=one.bare_margin, present_margin=one.bare_margin, peak_work=one.work) for one in looks]
    found = held(*plain, current=current)
    assert (found.slo, found.peak, found.queue) == (0, 0, 0)


def decided(**snapshot: Any) -> Held | None:
    decision, _ = decide(a_policy(), a_snapshot(**snapshot), State.initial(0.0), 100.0)
    return decision.held


def test_a_decision_tells_what_its_replicas_are_held_for() -> None:
    found = decided(ready=4, running=60.0)
    assert found is not None
    assert found.replicas == 4
    assert 0 < found.work < 4


@pytest.mark.parametrize(
    "snapshot",
    [
        {"ready": 4, "running": None},
        {"ready": 0, "replicas": 4},
        {"ready": 0, "target": a_target(0)},
        {"ready": 4, "target": a_target(20)},
    ],
    ids=["nothing told", "no pod ready", "at zero", "out of bounds"],
)
def test_nothing_is_said_where_the_work_is_not_known_or_not_what_decides(snapshot: dict[str, Any]) -> None:
    assert decided(**snapshot) is None
