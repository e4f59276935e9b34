"""What a policy can get wrong about its signals, and the sentence for each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bandkeeper.api.v1alpha1 import Spec
from bandkeeper.signals.collector import CollectorSettings
from bandkeeper.signals.problems import ProblemReason, problems
from bandkeeper.signals.prometheus import PrometheusServer

SETTINGS = CollectorSettings(servers=(PrometheusServer(name="default", url="http://prometheus:9090"),))
TTFT = {"signal": "TimeToFirstToken", "threshold": "500ms"}


def a_spec(**changes: Any) -> Spec:
    document = {
        "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
        "objective": "LatencySensitive",
        "runtime": "VLLM",
        "replicas": {"min": 1, "max": 4},
        "slos": [TTFT],
        **changes,
    }
    return Spec.model_validate_json(json.dumps(document))


def test_a_good_policy_has_none() -> None:
    assert problems(a_spec(), SETTINGS) == ()
    assert problems(a_spec(prometheus={"name": "default"}), SETTINGS) == ()
    own = [{"signal": "TimeToFirstToken", "metric": "my_ttft_seconds"}]
    assert problems(a_spec(runtime="Generic", signals=own), SETTINGS) == ()


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        (
            {"runtime": "vllm"},
            ProblemReason.UNKNOWN_RUNTIME,
            "runtime 'vllm' is unknown: write VLLM (known are Generic, Triton, VLLM)",
        ),
        ({"runtime": "Ollama"}, ProblemReason.UNKNOWN_RUNTIME, "write one of Generic, Triton, VLLM"),
        (
            {"slos": [{"signal": "TimeToFirstTokens", "threshold": "1s"}]},
            ProblemReason.UNKNOWN_SIGNAL,
            "'TimeToFirstTokens' in spec.slos is unknown: write TimeToFirstToken (known are EndToEndLatency,",
        ),
        (
            {"signals": [{"signal": "RequestRunning", "metric": "x"}]},
            ProblemReason.UNKNOWN_SIGNAL,
            "'RequestRunning' in spec.signals is unknown: write RequestsRunning (known are",
        ),
        (
            {"slos": [{"signal": "RequestsRunning", "threshold": "1s"}]},
            ProblemReason.INVALID_SLO,
            "RequestsRunning has no latency to hold under a threshold: write one of EndToEndLatency,",
        ),
        (
            {"slos": [{"signal": "GenerationTokens", "threshold": "1s"}]},
            ProblemReason.INVALID_SLO,
            "or minPerSecond instead of threshold",
        ),
        (
            {"slos": [{"signal": "TimeToFirstToken", "minPerSecond": 10}]},
            ProblemReason.INVALID_SLO,
            "or threshold instead of minPerSecond",
        ),
        (
            {"runtime": "Triton", "slos": [{"signal": "InterTokenLatency", "threshold": "50ms"}]},
            ProblemReason.SLO_WITHOUT_SOURCE,
            "runtime Triton has no source for the SLO on InterTokenLatency: write one of EndToEndLatency, QueueTime, "
            "TimeToFirstToken, or give it one in spec.signals, such as {signal: InterTokenLatency, metric: NAME}",
        ),
        (
            {"runtime": "Generic"},
            ProblemReason.SLO_WITHOUT_SOURCE,
            "TimeToFirstToken: give it one in spec.signals, such as {signal: TimeToFirstToken,",
        ),
        (
            {"slos": [{"signal": "Samples", "minPerSecond": 10}]},
            ProblemReason.SLO_WITHOUT_SOURCE,
            "write one of GenerationTokens, PromptTokens, RequestsFinished",
        ),
        (
            {
                "objective": "ThroughputSensitive",
                "slos": [],
                "signals": [{"signal": "Backlog", "metric": "left"}],
                "backlog": {"rate": "Samples", "within": "1h"},
            },
            ProblemReason.BACKLOG_WITHOUT_SOURCE,
            "runtime VLLM has no source for the backlog's Samples: give it one in spec.signals, such as "
            "{signal: Samples, metric: NAME}",
        ),
        (
            {
                "runtime": "Generic",
                "objective": "ThroughputSensitive",
                "slos": [],
                "signals": [
                    {"signal": "RequestsFinished", "metric": "done_total"},
                    {"signal": "RequestsRunning", "metric": "running"},
                ],
                "backlog": {"rate": "RequestsFinished", "within": "1h"},
            },
            ProblemReason.BACKLOG_WITHOUT_SOURCE,
            "{signal: RequestsWaiting, metric: NAME}, or give the signal Backlog",
        ),
        (
            {"prometheus": {"name": "defualt"}},
            ProblemReason.PROMETHEUS_NOT_ALLOWED,
            "spec.prometheus.name 'defualt' is unknown: write one of: default",
        ),
        (
            {"prometheus": {"url": "http://mine:9090"}},
            ProblemReason.PROMETHEUS_NOT_ALLOWED,
            "allows none (prometheus.allowedURLs)",
        ),
    ],
)
def test_each_problem_says_what_to_write(changes: dict[str, Any], reason: ProblemReason, words: str) -> None:
    (problem,) = problems(a_spec(**changes), SETTINGS)
    assert problem.reason is reason
    assert words in problem.message
    assert len(problem.message) <= 256


def test_an_unknown_runtime_is_said_once() -> None:
    (problem,) = problems(a_spec(runtime="VLM"), SETTINGS)
    assert problem.reason is ProblemReason.UNKNOWN_RUNTIME
