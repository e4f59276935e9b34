"""Selectors as `/scale` writes them."""

from __future__ import annotations

import pytest

from bandkeeper.kube.selector import SelectorError, parse_selector

CHAT = {"app": "chat", "tier": "gpu", "example.com/team": "a-1", "empty": ""}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("app=chat", True),
        ("app==chat", True),
        ("app=other", False),
        ("app=chat,tier=gpu", True),
        ("app=chat,tier=cpu", False),
        (" app = chat , tier = gpu ", True),
        ("example.com/team=a-1", True),
        ("empty=", True),
        ("missing=", False),
        ("app!=chat", False),
        ("app!=other", True),
        ("missing!=anything", True),
        ("app in (chat,other)", True),
        ("app in (chat, other),tier in (gpu)", True),
        ("app in (x,y)", False),
        ("missing in (x)", False),
        ("app notin (chat)", False),
        ("app notin (x, y)", True),
        ("missing notin (x)", True),
        ("app", True),
        ("missing", False),
        ("!missing", True),
        ("! missing", True),
        ("!app", False),
        ("app=chat,!canary,tier in (gpu,tpu),team notin (b)", True),
        ("app=chat,!tier", False),
    ],
)
def test_matching(text: str, matches: bool) -> None:
    assert parse_selector(text).matches(CHAT) is matches


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_selector_selects_nothing_and_says_what_to_do(text: str) -> None:
    with pytest.raises(SelectorError, match="labelSelectorPath"):
        parse_selector(text)


@pytest.mark.parametrize(
    "text", ["app in", "app in (", "=chat", "app=chat,,", "app=a b", "a in (x", "app like x", "-a=b"]
)
def test_a_malformed_selector_is_quoted(text: str) -> None:
    with pytest.raises(SelectorError, match="cannot be read at"):
        parse_selector(text)
