"""A policy's account: GPU-hours, what of them was wasted, what they cost, and what they were held for, since when.

The status keeps it for the next leader, who goes on with it. It begins anew with another objective or currency, so that
the accounts of many policies can be added by either.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from bandkeeper.api import v1alpha1
from bandkeeper.api.conditions import rfc3339
from bandkeeper.decide.decision import RULES, UNKNOWN_RULE
from bandkeeper.runtime.quality import Price, Spent
from bandkeeper.runtime.tracked import Tracked

TOLD_EVERY_S = 600.0
"""Between two times that the status is brought up to date: so much is lost at most when the leader is lost."""
MOST = 1e12  # hours, and units of money: beyond it a status was not written by us


@dataclass(slots=True)
class Account:
    """What was counted since `since`, in hours of one GPU; `cost` is None without a price.

    Attributes
    ----------
    judged
        Hours of which the counters told what they were worth; `wasted` is a part of them.
    by_rule
        Hours by what they were held for, as far as anything was said.
    """

    since: str
    objective: str
    currency: str | None
    held: float = 0.0
    judged: float = 0.0
    wasted: float = 0.0
    cost: float | None = None
    wasted_cost: float | None = None
    by_rule: dict[str, float] = field(default_factory=dict)

    def add(self, spent: Spent) -> None:
        """Count the time since the last look."""
        wasted_s = sum(gpu_s for _, gpu_s in spent.wasted_s)
        self.held += spent.gpu_s / 3600
        if spent.judged:
            self.judged += spent.gpu_s / 3600
            self.wasted += wasted_s / 3600
        if spent.price is not None:
            self.cost = (self.cost or 0.0) + (spent.cost(spent.gpu_s) or 0.0)
        if spent.price is not None and spent.judged:
            self.wasted_cost = (self.wasted_cost or 0.0) + (spent.cost(wasted_s) or 0.0)
        for rule, gpu_s in spent.by_rule:
            self.by_rule[rule] = self.by_rule.get(rule, 0.0) + gpu_s / 3600


def account_of(tracked: Tracked, *, wall_s: float) -> Account | None:
    """The account to go on with; None where the spec cannot be read. `wall_s` in epoch seconds."""
    known = tracked.account if tracked.told else resumed(tracked.status.cost)
    spec, price = tracked.managed.spec, Price.of(tracked)
    if spec is None:
        return known
    objective, currency = str(spec.objective), price.currency if price else None
    if known is None or (known.objective, known.currency) != (objective, currency):
        return Account(rfc3339(wall_s), objective, currency)
    return known


def resumed(told: v1alpha1.CostStatus | None) -> Account | None:
    """The account that a status tells; None where it cannot be meant."""
    if told is None:
        return None
    try:
        account = Account(
            since=told.since,
            objective=told.objective,
            currency=told.currency,
            held=_figure(told.gpu_hours),
            judged=_figure(told.judged_gpu_hours),
            wasted=_figure(told.wasted_gpu_hours or "0"),
            cost=None if told.cost is None else _figure(told.cost),
            wasted_cost=None if told.wasted_cost is None else _figure(told.wasted_cost),
            by_rule={one.rule: _figure(one.gpu_hours) for one in told.by_rule if one.rule in (*RULES, UNKNOWN_RULE)},
        )
        datetime.fromisoformat(told.since)
    except ValueError:
        return None
    return account


def _figure(text: str) -> float:
    value = float(text)
    if not 0 <= value < MOST:
        raise ValueError(text)
    return value


def cost_of(tracked: Tracked, *, wall_s: float) -> v1alpha1.CostStatus | None:
    """The account for the status, which is brought up to date now and then only."""
    account, old = tracked.account, tracked.status.cost
    if account is None or not account.held:
        return old
    if old is not None and old.since == account.since and 0 <= wall_s - _epoch_s(old.until) < TOLD_EVERY_S:
        return old
    return v1alpha1.CostStatus(
        since=account.since,
        until=rfc3339(wall_s),
        objective=account.objective,
        gpu_hours=_hours(account.held),
        judged_gpu_hours=_hours(account.judged),
        wasted_gpu_hours=_hours(account.wasted) if account.judged else None,
        currency=account.currency,
        cost=_money(account.cost),
        wasted_cost=_money(account.wasted_cost),
        by_rule=[
            v1alpha1.RuleCost(rule=rule, gpu_hours=_hours(account.by_rule[rule]))
            for rule in (*RULES, UNKNOWN_RULE)
            if rule in account.by_rule
        ],
    )


def _epoch_s(time: str) -> float:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0


def _hours(value: float) -> str:
    return f"{value:.3f}"


def _money(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
