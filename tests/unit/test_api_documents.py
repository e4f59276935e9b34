"""The table of documents, judged by the models."""

import pytest

from bandkeeper.api.v1alpha1 import Spec
from bandkeeper.api.validation import validate
from tests.documents import CASES, Case


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
