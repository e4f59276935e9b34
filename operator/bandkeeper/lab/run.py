"""One run: a simulated fleet under a load, driven by a rule that sees scraped metrics. Deterministic by its seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import PodState
from bandkeeper.decide.policy import CostClass, LatencySLO, Policy, ThroughputSLO
from bandkeeper.lab import score
from bandkeeper.lab.fleet import Fleet, Outcome, PodNow, TokenTotals
from bandkeeper.lab.held import HeldFor
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.result import Move, PowerResult, Result, Series, SLOResult
from bandkeeper.lab.rules.rule import Rule, Setting, View, Want
from bandkeeper.lab.scrape import Scraper
from bandkeeper.lab.series import Recorder, interval_s
from bandkeeper.lab.server import Server
from bandkeeper.lab.snapshot import LIVE, Observer

WARMUP_S = 900.0
PERIOD_S = 15.0
SCRAPE_S = 15.0
START_MARGIN = 1.2
_MINUTE_S = 60.0

Progress = Callable[[float, float], None]
"""Called now and then with the seconds simulated and the seconds in all."""


class RunError(ValueError):
    """The run cannot begin; the text says what to change."""


def simulate(
    setting: Setting,
    rule: Rule,
    *,
    rule_name: str,
    policy_name: str = "policy",
    server_name: str = "",
    start: int | None = None,
    warmup_s: float = WARMUP_S,
    seed: int = 1,
    period_s: float = PERIOD_S,
    scrape_s: float = SCRAPE_S,
    progress: Progress | None = None,
) -> Result:
    """Let `rule` drive the fleet until the load is over.

    `start` replicas (default: `start_replicas`) are ready at time 0 and are a floor during the warm-up. A rule that has
    `period_s` or `scrape_s` of its own gets these.

    Raises
    ------
    RunError
        There are no requests, the load is not longer than the warm-up, or `start` is out of bounds.
    """
    requests = setting.requests
    if not len(requests):
        raise RunError(f"{requests.name} has no requests: nothing can be simulated")
    if requests.duration_s <= warmup_s:
        raise RunError(
            f"{requests.name} lasts {requests.duration_s:g} s, not longer than the warm-up of {warmup_s:g} s: "
            "give a longer load, or a shorter --warmup"
        )
    policy = setting.policy
    if start is None:
        start = start_replicas(policy, setting.server, requests, warmup_s)
    elif not 1 <= start <= policy.max_replicas:
        raise RunError(f"the run cannot start with {start} replicas: write 1 to {policy.max_replicas} (replicas.max)")
    run = _Run(
        setting,
        rule,
        start=start,
        warmup_s=warmup_s,
        seed=seed,
        period_s=getattr(rule, "period_s", period_s),
        scrape_s=getattr(rule, "scrape_s", scrape_s),
    )
    run.play(progress)
    return run.result(rule_name, policy_name, server_name or setting.server.kind)


def start_replicas(policy: Policy, server: Server, requests: Requests, warmup_s: float) -> int:
    """1.2 x the work of the warm-up's busiest minute, in replicas, within the policy's bounds."""
    span_s = min(max(warmup_s, _MINUTE_S), requests.duration_s)
    edges = np.arange(0.0, span_s + _MINUTE_S, _MINUTE_S)
    busiest = float(np.histogram(requests.arrival_s, bins=edges)[0].max()) / _MINUTE_S
    each_per_s = server.sustainable_per_s(requests.mean_prompt_tokens, requests.mean_output_tokens)
    wanted = math.ceil(START_MARGIN * busiest / each_per_s - 1e-9)
    return min(max(1, wanted, policy.min_replicas), policy.max_replicas)


class _Run:
    """The state of one run."""

    def __init__(
        self,
        setting: Setting,
        rule: Rule,
        *,
        start: int,
        warmup_s: float,
        seed: int,
        period_s: float,
        scrape_s: float,
    ) -> None:
        policy, server, requests = setting.policy, setting.server, setting.requests
        self.setting, self.rule = setting, rule
        self.start, self.warmup_s, self.seed = start, warmup_s, seed
        self.period_s, self.end_s = period_s, requests.duration_s
        self.interval_s = interval_s(self.end_s, PERIOD_S)
        self.fleet = Fleet(
            server,
            requests,
            replicas=start,
            seed=seed,
            itl_thresholds_s=score.itl_thresholds(policy),
            bin_s=self.interval_s,
        )
        self.scraper = Scraper(server, scrape_s=scrape_s)
        self.observer = Observer(policy, server, self.scraper)
        self.recorder = Recorder(setting, self.scraper)
        self.moves: list[Move] = []
        self.caps_written: dict[str, int] = {}
        self.held_for = HeldFor(server.gpus, warmup_s)

    def play(self, progress: Progress | None) -> None:
        """Everything up to the end of the load."""
        fleet, end_s = self.fleet, self.end_s
        ticks = marks = 1
        while fleet.now_s < end_s:
            tick_s, mark_s = ticks * self.period_s, min(end_s, marks * self.interval_s)
            fleet.advance(min(end_s, self.scraper.next_s, tick_s, mark_s))
            now_s = fleet.now_s
            if now_s >= self.scraper.next_s:
                self.scraper.collect(fleet)
            if now_s < min(tick_s, mark_s):
                continue
            pods = fleet.pods
            self.scraper.at(now_s, pods)
            self.recorder.note(now_s, pods)
            if now_s >= mark_s:
                self.recorder.mark(fleet, pods)
                marks += 1
                if progress is not None:
                    progress(now_s, end_s)
            if now_s >= tick_s:
                self._tick(now_s, pods)
                ticks += 1

    def _tick(self, now_s: float, pods: tuple[PodNow, ...]) -> None:
        fleet = self.fleet
        ready = [pod for pod in pods if pod.state is PodState.READY]
        view = View(
            now_s=now_s,
            replicas=fleet.replicas,
            ready=len(ready),
            pending=sum(pod.state in LIVE for pod in pods) - len(ready),
            floor=self._floor(now_s),
            cap=min((pod.cap for pod in ready), default=fleet.cap),
            metrics=self.scraper,
            snapshot=self.observer.snapshot(now_s, pods, replicas=fleet.replicas, caps_written=self.caps_written),
        )
        want = self.rule.decide(view)
        self.held_for.count(view.replicas, want.held, now_s)
        self._carry_out(now_s, pods, want)

    def _floor(self, now_s: float) -> int:
        least = self.setting.policy.min_replicas
        return max(least, self.start) if now_s < self.warmup_s else least

    def _carry_out(self, now_s: float, pods: tuple[PodNow, ...], want: Want) -> None:
        """Order what is wanted, within the bounds."""
        fleet, policy = self.fleet, self.setting.policy
        replicas_from, cap_from = fleet.replicas, fleet.cap
        replicas = max(self._floor(now_s), min(want.replicas, policy.max_replicas))
        if replicas != replicas_from:
            fleet.scale(replicas)
        if want.cap is not None and policy.batch is not None:
            self._write_cap(pods, min(max(want.cap, policy.batch.candidates[0]), policy.batch.candidates[-1]))
        if (fleet.replicas, fleet.cap) != (replicas_from, cap_from):
            self.moves.append(
                Move(
                    at_s=now_s,
                    replicas_from=replicas_from,
                    replicas_to=fleet.replicas,
                    cap_from=cap_from if policy.batch else None,
                    cap_to=fleet.cap if policy.batch else None,
                    reason=want.reason,
                    why=want.message,
                )
            )

    def _write_cap(self, pods: tuple[PodNow, ...], cap: int) -> None:
        """On every live pod that differs, as the adapters do; pods that come later have it from the fleet."""
        if cap != self.fleet.cap:
            self.fleet.set_cap(cap)
        self.caps_written = {pod.name: cap for pod in pods if pod.state in LIVE}

    def result(self, rule_name: str, policy_name: str, server_name: str) -> Result:
        """What came of it."""
        setting, policy, server = self.setting, self.setting.policy, self.setting.server
        requests, warmup_s, end_s = setting.requests, self.warmup_s, self.end_s
        outcome, totals = self.fleet.outcome(), self.fleet.token_totals()
        judge = score.Judge(policy, server, requests, outcome, warmup_s=warmup_s, end_s=end_s)
        series = self.recorder.series(outcome, totals)
        hours = score.gpu_hours(outcome.ledger, server.gpus, warmup_s=warmup_s, end_s=end_s)
        work_hours = score.work_hours(requests, outcome, server, warmup_s=warmup_s)
        judged = [move for move in self.moves if move.at_s >= warmup_s]
        counts = judge.counts()
        return Result(
            rule=rule_name,
            policy=policy_name,
            objective=str(policy.objective),
            band_low=policy.band.low,
            band_high=policy.band.high,
            min_replicas=policy.min_replicas,
            max_replicas=policy.max_replicas,
            server=server_name,
            model=server.model,
            gpu=server.gpu,
            workload=requests.name,
            notes=[*requests.notes, *_notes(policy)],
            seed=self.seed,
            duration_s=end_s,
            warmup_s=warmup_s,
            start_replicas=self.start,
            cold_start_s=server.cold_start.median_s,
            slos=self._slos(judge, outcome, totals),
            attainment_both=judge.both([slo for slo in policy.slos if isinstance(slo, LatencySLO)]),
            gpu_hours=hours,
            gpu_hours_wasted=max(0.0, hours - work_hours),
            gpu_hours_by_rule=self.held_for.hours(),
            time_in_band=self._time_in_band(series),
            requests=counts,
            errors=counts.errors,
            scale_actions=sum(move.replicas_to != move.replicas_from for move in judged),
            batch_actions=sum(move.cap_to != move.cap_from for move in judged),
            oscillations=score.oscillations(judged),
            power=self._power(series),
            moves=self.moves,
            series=series,
        )

    def _slos(self, judge: score.Judge, outcome: Outcome, totals: TokenTotals) -> list[SLOResult]:
        return [self._slo(slo, judge, outcome, totals) for slo in self.setting.policy.slos]

    def _slo(
        self, slo: LatencySLO | ThroughputSLO, judge: score.Judge, outcome: Outcome, totals: TokenTotals
    ) -> SLOResult:
        recorder, warmup_s = self.recorder, self.warmup_s
        if isinstance(slo, ThroughputSLO):
            judged = recorder.ends_s() - self.interval_s >= warmup_s
            rates = recorder.produced_per_s(slo.signal, outcome, totals)
            return score.throughput(slo, rates[judged], recorder.queued()[judged])
        if slo.signal is Signal.QUEUE_TIME:
            edges_s = self.scraper.edges_s(slo.signal)
            return score.queue_time(slo, judge, edges_s, recorder.queue_times(warmup_s))
        return score.latency(slo, judge, totals, warmup_s)

    def _power(self, series: Series) -> PowerResult | None:
        limit, ends = self.setting.policy.power_watts, max(1, round(_MINUTE_S / self.interval_s))
        if limit is None:
            return None
        first_s = self.warmup_s + self.interval_s
        judged = [value for at_s, value in zip(series.at_s, series.watts, strict=True) if at_s >= first_s]
        known = [value for value in judged if value is not None]
        minutes = [
            math.fsum(known) / len(known)
            for first in range(len(judged) - ends + 1)
            if (known := [value for value in judged[first : first + ends] if value is not None])
        ]
        return PowerResult(
            limit_watts=limit,
            mean_watts=math.fsum(known) / len(known) if known else None,
            most_watts=max(minutes, default=None),
            above=sum(value > limit for value in minutes) / len(minutes) if minutes else None,
        )

    def _time_in_band(self, series: Series) -> float | None:
        """Share of the intervals after the warm-up whose utilisation lies in the band."""
        band = self.setting.policy.band
        known = [
            band.low <= value <= band.high
            for at_s, value in zip(series.at_s, series.utilization, strict=True)
            if value is not None and at_s - self.interval_s >= self.warmup_s
        ]
        return sum(known) / len(known) if known else None


def _notes(policy: Policy) -> list[str]:
    if policy.batch is not None and policy.batch.cost_class is CostClass.ROLLOUT:
        return [
            f"The rollout that a new batch cap takes is simulated as {policy.batch.expected_delay_s:g} s of delay, "
            "without its surge of pods."
        ]
    return []
