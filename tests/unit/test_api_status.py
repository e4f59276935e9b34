"""The status stays within its bounds, whatever is put into it."""

import json

import pytest

from bandkeeper.api.v1alpha1 import HISTORY_LIMIT, STATUS_LIMIT_BYTES, QualityStatus, ReplicaStatus, Status
from tests.documents import a_full_status


def _bytes(status: object) -> int:
    return len(json.dumps(status, ensure_ascii=False, separators=(",", ":")).encode())


@pytest.mark.parametrize("letter", ["m", "é", "語", "🙂"])
def test_a_full_status_fits(letter: str) -> None:
    full = a_full_status(letter)
    stored = full.stored()

    assert _bytes(full.model_dump(mode="json", by_alias=True)) > STATUS_LIMIT_BYTES
    assert _bytes(stored) <= STATUS_LIMIT_BYTES
    assert len(stored["conditions"]) == len(full.conditions)
    assert len(stored["slos"]) == len(full.slos)


def test_old_history_goes_first() -> None:
    full = a_full_status()
    short = [entry.model_copy(update={"message": f"Decision {n}."}) for n, entry in enumerate(full.history)]
    room = [condition.model_copy(update={"message": "Short."}) for condition in full.conditions]
    quality = QualityStatus(class_="Mixed", confidence_percent=90)
    others = {"conditions": room, "quality": quality, "cost": None, "power": None, "model": None}
    status = full.model_copy(update={"history": short, **others})

    assert status.stored()["history"] == [
        entry.model_dump(mode="json", by_alias=True, exclude_none=True) for entry in short
    ]
    crowded = full.model_copy(update=others).stored()
    assert 0 < len(crowded["history"]) < HISTORY_LIMIT
    assert crowded["conditions"][0]["message"] == "Short."


def test_a_usual_status_is_stored_whole() -> None:
    status = Status(observed_generation=1, replicas=ReplicaStatus(current=3, desired=4))
    assert status.stored() == {
        "observedGeneration": 1,
        "conditions": [],
        "replicas": {"current": 3, "desired": 4},
        "slos": [],
        "history": [],
    }


def test_what_was_stored_can_be_read_again() -> None:
    stored = a_full_status().stored()
    assert Status.model_validate_json(json.dumps(stored)).stored() == stored


def test_an_absurd_count_is_capped() -> None:
    assert ReplicaStatus(current=10**12).current == 1_000_000
