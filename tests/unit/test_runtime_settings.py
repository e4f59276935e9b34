"""The operator's configuration: what is accepted, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bandkeeper.quality.types import Thresholds
from bandkeeper.runtime.settings import LogFormat, SettingsError, load, parse

GOOD: dict[str, Any] = {"prometheus": {"servers": [{"url": "http://127.0.0.1:9090"}]}}


def test_a_server_is_enough() -> None:
    settings = parse(GOOD, "config")
    assert (settings.period, settings.restart_hold, settings.log_format) == (15.0, 300.0, LogFormat.JSON)
    assert settings.prometheus.servers[0].name == "default"
    assert settings.address == ("127.0.0.1", 8080)


def test_every_field_is_read() -> None:
    settings = parse(
        {
            "period": "1s",
            "namespaces": ["a"],
            "logFormat": "text",
            "listen": "0.0.0.0:9000",
            "restartHold": "10s",
            "lease": {"name": "x", "namespace": "y", "duration": "5s", "renewDeadline": "3s", "retryPeriod": "500ms"},
            "prometheus": {
                "servers": [
                    {"name": "one", "url": "https://p", "caFile": "/ca", "bearerTokenFile": "/t", "timeout": "2s"}
                ],
                "allowedURLs": ["https://p"],
                "rateWindow": "10s",
            },
            "adapters": {"annotation": True, "podTemplate": True},
            "quality": {
                "thresholds": {"poorUpper": 0.3, "settle": "2m"},
                "gpus": {"RTX A6000": {"teraflops": 154.8, "terabytesPerSecond": 0.768, "watts": 300}},
            },
        },
        "config",
    )
    assert settings.lease.retry_period == 0.5
    assert settings.prometheus.servers[0].ca_file == Path("/ca")
    assert settings.prometheus.allowed_urls == ["https://p"]
    assert settings.adapters.pod_template
    assert settings.quality.bounds == Thresholds(poor_upper=0.3, settle_s=120.0)
    peaks = settings.quality.peaks.of("NVIDIA RTX A6000")
    assert peaks is not None
    assert peaks.power == 300


TOKEN = {"name": "a", "file": "/t", "namespaces": ["serving"]}
BAD = [
    ({}, "prometheus"),
    ({"prometheus": {"servers": []}}, "prometheus.servers"),
    ({**GOOD, "period": 15}, "must be a duration such as 15s"),
    ({**GOOD, "period": "0s"}, "longer than 0s"),
    ({**GOOD, "perod": "15s"}, "perod"),
    ({**GOOD, "logFormat": "xml"}, "logFormat"),
    ({**GOOD, "logLevel": "loud"}, "logLevel"),
    ({**GOOD, "listen": "8080"}, "listen"),
    ({"prometheus": {"servers": [{"url": "prometheus:9090"}]}}, "http://"),
    ({"prometheus": {"servers": [{"url": "http://me:secret@prometheus:9090"}]}}, "passwordFile"),
    ({"prometheus": {"servers": [{"name": "a", "url": "http://p"}, {"name": "a", "url": "http://q"}]}}, "two servers"),
    ({"prometheus": {"servers": [{"url": "http://p", "passwordFile": "/p"}]}}, "username"),
    ({**GOOD, "lease": {"duration": "5s", "renewDeadline": "6s"}}, "renewDeadline"),
    ({**GOOD, "quality": {"thresholds": {"poorUper": 0.3}}}, "quality.thresholds.poorUper"),
    ({**GOOD, "quality": {"thresholds": {"settle": 60}}}, "must be a duration such as 15s"),
    ({**GOOD, "quality": {"gpus": {"RTX A6000": {"teraflops": 154.8}}}}, "terabytesPerSecond, watts is missing"),
    ({**GOOD, "podAccess": {"credentials": [{"name": "a", "file": "/t"}]}}, "podAccess.credentials.0.namespaces"),
    ({**GOOD, "podAccess": {"credentials": [TOKEN | {"namespaces": []}]}}, "at least 1 item"),
    ({**GOOD, "podAccess": {"rayServe": True}}, "podAccess.rayServe"),
    ({**GOOD, "podAccess": {"credentials": [TOKEN, TOKEN]}}, "two credentials have the same name"),
    ({**GOOD, "podAccess": {"credentials": [TOKEN | {"header": "X Key:"}]}}, "podAccess.credentials.0.header"),
    ("just text", "mapping"),
]


@pytest.mark.parametrize(("document", "fragment"), BAD, ids=[fragment for _, fragment in BAD])
def test_a_mistake_is_named_with_its_place(document: Any, fragment: str) -> None:
    with pytest.raises(SettingsError, match=r"^config: ") as refused:
        parse(document, "config")
    assert fragment in str(refused.value)


def test_a_missing_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read"):
        load(tmp_path / "none.yaml")


def test_text_that_is_not_yaml_says_so(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("a: [")
    with pytest.raises(SettingsError, match="is not YAML"):
        load(file)
