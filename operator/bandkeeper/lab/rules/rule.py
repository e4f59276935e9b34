"""What a scaling rule sees and says. A rule of one's own is a class with one method, `decide`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Snapshot
from bandkeeper.decide.decision import Held
from bandkeeper.decide.policy import Policy
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.server import Server


class Metrics(Protocol):
    """The fleet's metrics as Prometheus has them: scraped, so late; by ready pod.

    A pod that was not scraped yet, or whose window holds one sample only, has no entry: missing is never 0.
    """

    def latest(self, signal: Signal) -> Mapping[str, float]:
        """A gauge's last scraped value by pod."""

    def mean(self, signal: Signal, window_s: float) -> Mapping[str, float]:
        """avg_over_time of a gauge by pod."""

    def peak(self, signal: Signal, window_s: float) -> Mapping[str, float]:
        """max_over_time of a gauge by pod."""

    def rate(self, signal: Signal, window_s: float) -> Mapping[str, float]:
        """Per-second rate of a counter by pod."""

    def quantile(self, signal: Signal, share: float, window_s: float) -> float | None:
        """histogram_quantile of the workload in seconds (`share` 0 to 1); None without observations."""

    def average(self, signal: Signal, window_s: float) -> float | None:
        """Mean of a histogram's observations in seconds; None without observations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a rule may look at.

    Attributes
    ----------
    now_s
        Seconds since the start of the run.
    replicas
        What the scale subresource wants now.
    ready, pending
        Pods that serve, and pods on their way.
    floor
        Fewest replicas that the lab permits now: the policy's, and the start size during the warm-up.
    cap
        The batch cap in force.
    metrics
        The scraped metrics.
    snapshot
        The same as the operator's snapshot.
    """

    now_s: float
    replicas: int
    ready: int
    pending: int
    floor: int
    cap: int
    metrics: Metrics
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Want:
    """What a rule wants: replicas, and a batch cap (None: leave it). Bounds are kept by the lab.

    `held` is what the replicas that are there are held for, where the rule tells.
    """

    replicas: int
    cap: int | None = None
    reason: str = ""
    message: str = ""
    held: Held | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a rule is built for. Only the bounds in hindsight look at `requests`; a rule for real use must not."""

    policy: Policy
    server: Server
    requests: Requests


class Rule(Protocol):
    """A scaling rule. May also have `period_s` (between calls) and `scrape_s` (of its own metrics), both 15 by default.

    A file given to `bandkeeper bench --rules` holds a class `Rule` whose constructor takes a `Setting`.
    """

    def decide(self, view: View) -> Want:
        """What is wanted now."""
