"""What is in force for a policy, in the words of its status: made once per change of the policy."""

from __future__ import annotations

from bandkeeper.api import durations, v1alpha1
from bandkeeper.decide.policy import Policy, RateLimit, ScalingRules
from bandkeeper.decide.size import drain_of


def effective_of(policy: Policy, spec: v1alpha1.Spec, *, period_s: float) -> v1alpha1.Effective:
    """The policy with every default filled in, and the time between two looks at it in seconds."""
    return v1alpha1.Effective(
        band=v1alpha1.Band(low_percent=round(policy.band.low * 100), high_percent=round(policy.band.high * 100)),
        batch_rule=policy.batching if policy.batch else "ReplicasOnly",
        power_watts_per_gpu=None if policy.power_watts is None else round(policy.power_watts),
        parallel_efficiency_percent=None if policy.least_efficiency is None else round(100 * policy.least_efficiency),
        drain_seconds=None if policy.deadline is not None else round(drain_of(policy)),
        deadline=None if spec.backlog is None else spec.backlog.within or spec.backlog.by,
        scale_up=_rules(policy.scale_up),
        scale_down=_rules(policy.scale_down),
        fallback=spec.fallback,
        period=durations.text(period_s),
    )


def _rules(rules: ScalingRules) -> v1alpha1.EffectiveScalingRules:
    return v1alpha1.EffectiveScalingRules(
        stabilization_window_seconds=round(rules.stabilization_s),
        select_policy=rules.select,
        limits=" or ".join(_limit(limit) for limit in rules.limits) or "none",
        tolerance=f"{rules.tolerance:g}",
    )


def _limit(limit: RateLimit) -> str:
    amount = f"{limit.value}%" if limit.percent else f"{limit.value} pods"
    return f"{amount} in {limit.period_s:g}s"
