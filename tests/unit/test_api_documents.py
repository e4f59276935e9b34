"""The table of documents, judged by the models."""

import pytest

from bandkeeper.api.v1alpha1 import Spec
from bandkeeper.api.validation import validate
from tests.documents import CASES, Case, a_policy


def test_the_table_is_large_and_its_names_are_distinct() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verdict(case: Case) -> None:
    verdict = validate(case.document)

    if case.good:
        assert isinstance(verdict, Spec), verdict
        return
    assert not isinstance(verdict, Spec)
    assert [problem.path for problem in verdict] == [case.path]
    assert case.message in verdict[0].message
    assert verdict[0].message.startswith("must ")


def test_a_problem_reads_as_a_sentence_with_its_place() -> None:
    verdict = validate(a_policy(replicas={"min": 0, "max": 4}))
    assert not isinstance(verdict, Spec)
    assert str(verdict[0]) == (
        "spec.replicas.min: must be at least 1: scale to zero needs an activation source and is planned; write 1"
    )


def test_every_problem_is_told() -> None:
    verdict = validate(a_policy(runtime="", mode="Dry", replicas={"max": "4"}, foo=1))
    assert not isinstance(verdict, Spec)
    assert [problem.path for problem in verdict] == ["spec.runtime", "spec.replicas.max", "spec.mode", "spec.foo"]


def test_an_empty_document_names_what_belongs_in_it() -> None:
    verdict = validate({})
    assert not isinstance(verdict, Spec)
    assert [problem.path for problem in verdict] == ["apiVersion", "kind", "metadata", "spec"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}])
def test_what_is_not_json_is_refused(value: object) -> None:
    verdict = validate(a_policy(runtime=value))
    assert not isinstance(verdict, Spec)
    assert str(verdict[0]).startswith("document: must be plain JSON or YAML")


def test_defaults_are_in_place_but_not_those_of_the_objective() -> None:
    spec = validate(
        a_policy(batch={"max": 8, "adapter": {"type": "Annotation"}}, slos=[{"signal": "A", "threshold": "1s"}])
    )
    assert isinstance(spec, Spec)
    assert (spec.slos[0].percentile, spec.slos[0].window) == (95, "60s")
    assert (spec.mode, spec.fallback.after, spec.fallback.behavior) == ("Enforce", "180s", "Hold")
    assert spec.batch is not None
    assert spec.batch.adapter.annotation is not None
    assert spec.batch.adapter.annotation.key == "bandkeeper.dev/batch-cap"
    assert (spec.band, spec.behavior, spec.batch.candidates) == (None, None, None)


def test_an_object_as_the_api_server_returns_it_is_valid() -> None:
    returned = {
        "name": "chat",
        "namespace": "serving",
        "uid": "0f0e",
        "resourceVersion": "7",
        "generation": 2,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"app": "chat"},
        "managedFields": [{"manager": "kubectl"}],
        "ownerReferences": [],
        "finalizers": [],
    }
    assert isinstance(validate(a_policy(root={"metadata": returned, "status": {"observedGeneration": 2}})), Spec)
