"""Conditions: every reason documented, and time that moves only with the status."""

import re

import pytest

from bandkeeper.api.conditions import INITIALIZING, ON_DEMAND, REASONS, ConditionType, Finding, merge, rfc3339
from bandkeeper.api.reasons import BandReason, DeadlineState, LimitReason, PowerState, ProfileState, SLOState
from bandkeeper.api.v1alpha1 import Condition, ConditionStatus

NOON_S, LATER_S = 1_767_268_800.0, 1_767_268_860.9
NOON, LATER = "2026-01-01T12:00:00Z", "2026-01-01T12:01:00Z"


def _by_type(conditions: list[Condition]) -> dict[str, Condition]:
    return {condition.type: condition for condition in conditions}


def test_every_type_has_documented_reasons_of_one_word() -> None:
    assert set(REASONS) == set(ConditionType)
    for kind, reasons in REASONS.items():
        assert kind.meaning.endswith(".")
        for word, meaning in reasons.items():
            assert re.fullmatch("[A-Z][A-Za-z]*", word), word
            assert meaning.sentence.endswith("."), word


def test_every_condition_can_be_true_and_false() -> None:
    for kind, reasons in REASONS.items():
        statuses = {meaning.status for meaning in reasons.values()}
        assert statuses >= {ConditionStatus.TRUE, ConditionStatus.FALSE}, kind


def test_the_reasons_of_the_decision_are_taken_over() -> None:
    assert set(BandReason) <= set(REASONS[ConditionType.WITHIN_BAND])
    assert set(LimitReason) <= set(REASONS[ConditionType.SCALING_LIMITED])
    assert set(SLOState) <= set(REASONS[ConditionType.WITHIN_SLO])
    assert set(PowerState) <= set(REASONS[ConditionType.WITHIN_POWER])
    assert set(ProfileState) <= set(REASONS[ConditionType.PROFILE_FITS])


@pytest.mark.parametrize(
    ("kind", "reason", "status"),
    [
        (ConditionType.READY, "Ok", "True"),
        (ConditionType.READY, "TargetUnavailable", "Unknown"),
        (ConditionType.WITHIN_SLO, SLOState.MET, "True"),
        (ConditionType.WITHIN_SLO, SLOState.BREACHED, "False"),
        (ConditionType.WITHIN_SLO, SLOState.NO_TRAFFIC, "Unknown"),
        (ConditionType.WITHIN_BAND, BandReason.QUANTISED, "False"),
        (ConditionType.SCALING_LIMITED, LimitReason.AT_MAX, "True"),
        (ConditionType.SCALING_LIMITED, "DesiredWithinRange", "False"),
        (ConditionType.BATCH_APPLIED, "NotConfigured", "Unknown"),
        (ConditionType.WITHIN_POWER, PowerState.WITHIN, "True"),
        (ConditionType.WITHIN_POWER, PowerState.ABOVE, "False"),
        (ConditionType.WITHIN_POWER, PowerState.NO_DATA, "Unknown"),
        (ConditionType.WITHIN_DEADLINE, DeadlineState.IN_TIME, "True"),
        (ConditionType.WITHIN_DEADLINE, DeadlineState.LATE, "False"),
        (ConditionType.WITHIN_DEADLINE, DeadlineState.NO_DATA, "Unknown"),
        (ConditionType.PROFILE_FITS, ProfileState.FITS, "True"),
        (ConditionType.PROFILE_FITS, ProfileState.CONTRADICTED, "False"),
        (ConditionType.PROFILE_FITS, ProfileState.UNMEASURED, "Unknown"),
    ],
)
def test_the_reason_gives_the_status(kind: ConditionType, reason: str, status: str) -> None:
    assert Finding(kind, reason, "").status == status


def test_an_undocumented_reason_is_refused() -> None:
    with pytest.raises(KeyError):
        merge([], [Finding(ConditionType.READY, "Whatever", "")], now_s=NOON_S, generation=1)


def test_the_first_visit_sets_every_condition_that_all_policies_have() -> None:
    found = merge([], [Finding(ConditionType.PAUSED, "NotPaused", "Not paused.")], now_s=NOON_S, generation=3)

    assert [condition.type for condition in found] == [kind for kind in ConditionType if kind not in ON_DEMAND]
    assert {condition.last_transition_time for condition in found} == {NOON}
    assert {condition.observed_generation for condition in found} == {3}
    by_type = _by_type(found)
    assert (by_type["Paused"].status, by_type["Paused"].message) == ("False", "Not paused.")
    assert (by_type["Ready"].status, by_type["Ready"].reason) == ("Unknown", INITIALIZING)


def test_time_moves_with_the_status_only() -> None:
    first = merge([], [Finding(ConditionType.READY, "InvalidSpec", "One.")], now_s=NOON_S, generation=1)
    reworded = merge(first, [Finding(ConditionType.READY, "TargetNotFound", "Two.")], now_s=LATER_S, generation=2)
    turned = merge(first, [Finding(ConditionType.READY, "Ok", "Fine.")], now_s=LATER_S, generation=2)

    ready = _by_type(reworded)["Ready"]
    assert (ready.reason, ready.message, ready.observed_generation) == ("TargetNotFound", "Two.", 2)
    assert ready.last_transition_time == NOON
    assert _by_type(turned)["Ready"].last_transition_time == LATER


def test_what_was_not_judged_stays_as_it_was() -> None:
    first = merge([], [Finding(ConditionType.WITHIN_SLO, "Breached", "Late.")], now_s=NOON_S, generation=1)
    second = merge(first, [Finding(ConditionType.READY, "Ok", "Fine.")], now_s=LATER_S, generation=2)
    assert _by_type(second)["WithinSLO"] == _by_type(first)["WithinSLO"]


def test_what_few_policies_ask_for_goes_with_the_wish() -> None:
    power = Finding(ConditionType.WITHIN_POWER, PowerState.WITHIN, "A GPU draws 40 W.")
    first = merge([], [power], now_s=NOON_S, generation=1)
    kept = merge(first, [power], now_s=LATER_S, generation=2)
    assert _by_type(kept)["WithinPower"].last_transition_time == NOON
    assert "WithinPower" not in _by_type(merge(kept, [], now_s=LATER_S, generation=3))


def test_a_long_message_is_cut() -> None:
    found = merge([], [Finding(ConditionType.READY, "Ok", "m" * 300)], now_s=NOON_S, generation=1)
    assert _by_type(found)["Ready"].message == "m" * 255 + "…"


def test_what_cannot_be_written_is_left_out_of_a_message() -> None:
    found = merge([], [Finding(ConditionType.READY, "Ok", "no\ud800memory\x1b…")], now_s=NOON_S, generation=1)
    assert _by_type(found)["Ready"].message == "no memory …"


def test_time_is_written_in_whole_seconds() -> None:
    assert rfc3339(LATER_S) == LATER
