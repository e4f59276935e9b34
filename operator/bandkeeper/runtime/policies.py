"""A policy object as the loop uses it: checked, its defaults resolved, its runtime looked up. Done once per change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from bandkeeper.actuate import kserve
from bandkeeper.actuate.adapter import AdapterError, AddressOf, BatchAdapter
from bandkeeper.actuate.pod_access import Credential, PodAccess
from bandkeeper.actuate.pod_template import names_of
from bandkeeper.actuate.registry import batch_adapter
from bandkeeper.api.conditions import ReadyReason
from bandkeeper.api.v1alpha1 import GROUP, KIND, PAUSED_ANNOTATION, VERSION, AdapterType, Effective, Mode, Spec
from bandkeeper.api.validation import validate
from bandkeeper.decide.policy import Policy, resolve
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.objects import Key, ObjectRef, key_of, ref_of
from bandkeeper.kube.pods import PodSettings
from bandkeeper.runtime.effective import effective_of
from bandkeeper.runtime.settings import Settings
from bandkeeper.signals.collector import CollectorSettings
from bandkeeper.signals.presets import PRESETS
from bandkeeper.signals.problems import problems as source_problems
from bandkeeper.signals.sources import Preset

logger = logging.getLogger(__name__)

_JUDGED = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND}


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why a policy cannot be carried out as it is written."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Managed:
    """One policy that can be carried out, or the flaw that prevents it.

    `adapter` is None without a batch knob; `adapter_problem` says why a wanted one is off. `paused` policies and those
    that `mode` only lets recommend never write.
    """

    ref: ObjectRef
    generation: int
    created_s: float
    paused: bool
    flaw: Flaw | None = None
    spec: Spec | None = None
    preset: Preset | None = None
    policy: Policy | None = None
    effective: Effective | None = None
    adapter: BatchAdapter | None = None
    adapter_problem: str = ""
    pod_settings: PodSettings | None = None

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.ref.namespace, self.ref.name

    @property
    def enforcing(self) -> bool:
        """True when the policy may write."""
        return self.spec is not None and self.spec.mode is Mode.ENFORCE and not self.paused


class Interpreter:
    """Turns raw policy objects into `Managed`, remembering each until its generation or pause changes."""

    def __init__(
        self,
        client: KubeClient,
        settings: Settings,
        collector: CollectorSettings,
        *,
        address_of: AddressOf | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._clock = clock
        self._address_of = address_of
        self._settings = settings
        self._collector = collector
        self._enabled = _enabled_adapters(settings)
        self._pod_access = _pod_access(settings)
        self._peaks = settings.quality.peaks
        bounds, rate_window_s = settings.quality.bounds, settings.prometheus.rate_window
        self._bounds = replace(bounds, window_s=max(bounds.window_s, rate_window_s))  # rates are of no shorter time
        self._known: dict[Key, tuple[tuple[Any, ...], Managed]] = {}
        self._left: list[BatchAdapter] = []

    def read(self, raw: Mapping[str, Any]) -> Managed:
        """The managed policy of a raw object, the same one until it changes. Never raises."""
        key, metadata = key_of(raw), raw["metadata"]
        paused = (metadata.get("annotations") or {}).get(PAUSED_ANNOTATION) == "true"
        identity = (metadata["uid"], metadata.get("generation"), paused)
        known = self._known.get(key)
        if known is not None and known[0] == identity:
            return known[1]
        try:
            managed = self._interpret(raw, paused)
        except Exception as error:  # what nobody foresaw in one policy must not end the others
            logger.exception("a policy cannot be read", extra={"policy": "/".join(key)})
            flaw = Flaw(ReadyReason.INVALID_SPEC, f"the policy cannot be read ({error!r:.100}); the log has more")
            managed = Managed(**_base(raw, paused), flaw=flaw)
        if known is not None and known[1].adapter is not managed.adapter:
            self._leave(known[1])
        self._known[key] = identity, managed
        return managed

    def keep(self, present: Set[Key]) -> None:
        """Drop what is remembered of policies that are gone."""
        for key in self._known.keys() - present:
            self._leave(self._known.pop(key)[1])

    def left(self) -> list[BatchAdapter]:
        """The adapters that no policy uses any more, each once: they are to be closed."""
        left, self._left = self._left, []
        return left

    def _leave(self, managed: Managed) -> None:
        if managed.adapter is not None:
            self._left.append(managed.adapter)

    def _interpret(self, raw: Mapping[str, Any], paused: bool) -> Managed:
        base = _base(raw, paused)
        # Of the metadata only the name: the rest is the API server's, and newer ones may have more of it.
        verdict = validate({**_JUDGED, "metadata": {"name": raw["metadata"]["name"]}, "spec": raw.get("spec")})
        if not isinstance(verdict, Spec):
            return Managed(**base, flaw=Flaw(ReadyReason.INVALID_SPEC, "; ".join(map(str, verdict))))
        found = source_problems(verdict, self._collector)
        if found:
            return Managed(**base, spec=verdict, flaw=Flaw(found[0].reason, found[0].message))
        return self._resolve(base, verdict, PRESETS[verdict.runtime])

    def _resolve(self, base: dict[str, Any], spec: Spec, preset: Preset) -> Managed:
        adapter, problem = self._adapter(base["ref"], spec)
        policy = resolve(
            spec,
            batching=preset.batching,
            default_capacity=preset.default_capacity,
            cost_class=adapter.cost_class if adapter else None,
            expected_delay_s=adapter.expected_delay_s if adapter else 0.0,
            restart_hold_s=self._settings.restart_hold,
            rate_window_s=self._settings.prometheus.rate_window,
            quality=self._bounds,
            peaks=self._peaks,
        )
        return Managed(
            **base,
            spec=spec,
            preset=preset,
            policy=policy,
            effective=effective_of(policy, spec, period_s=self._settings.period),
            adapter=adapter,
            adapter_problem=problem,
            pod_settings=_pod_settings(spec, preset),
        )

    def _adapter(self, ref: ObjectRef, spec: Spec) -> tuple[BatchAdapter | None, str]:
        """The adapter, the same one while its settings stay: it may remember what it wrote."""
        if spec.batch is None:
            return None, ""
        _, before = self._known.get((ref.namespace, ref.name), (None, None))
        if before and before.ref.uid == ref.uid and before.adapter and before.spec and before.spec.batch:
            same = before.spec.batch.adapter == spec.batch.adapter
            if same and before.spec.target_ref == spec.target_ref:
                return before.adapter, ""
        try:
            adapter = batch_adapter(
                spec.batch.adapter,
                self._client,
                enabled=self._enabled,
                namespace=ref.namespace,
                pod_access=self._pod_access,
                address_of=self._address_of,
                clock=self._clock,
            )
            return adapter, ""
        except AdapterError as error:
            return None, str(error)


def _base(raw: Mapping[str, Any], paused: bool) -> dict[str, Any]:
    metadata = raw["metadata"]
    return {
        "ref": ref_of(raw),
        "generation": metadata.get("generation", 0),
        "created_s": _epoch_s(metadata.get("creationTimestamp")),
        "paused": paused,
    }


def _enabled_adapters(settings: Settings) -> frozenset[AdapterType]:
    switches = settings.adapters.model_dump(by_alias=True)
    return frozenset(kind for kind in AdapterType if switches[kind.member])


def _pod_access(settings: Settings) -> PodAccess:
    credentials = (
        Credential(**{**one.model_dump(), "namespaces": frozenset(one.namespaces)})
        for one in settings.pod_access.credentials
    )
    return PodAccess(ca_file=settings.pod_access.ca_file, credentials={one.name: one for one in credentials})


def _pod_settings(spec: Spec, preset: Preset) -> PodSettings:
    """Where a pod of this workload shows its cap, and what its server booted with."""
    adapter = spec.batch.adapter if spec.batch else None
    if adapter and adapter.k_serve:
        return PodSettings(
            cap_annotation=kserve.BATCH_SIZE_ANNOTATION,
            queue_bound=preset.queue_bound_names,
            prefill_tokens=preset.prefill_tokens_names,
        )
    template = adapter.pod_template if adapter else None
    annotation = adapter.annotation.key if adapter and adapter.annotation and not template else None
    names = names_of(template) if template else None
    cap = tuple(name for name in (names.env, names.argument) if name) if names else preset.cap_names
    # A rollout changes what the server boots with, unless it is of a cap on admission alone.
    boots_anew = template is not None and not set(cap) <= set(preset.cap_names)
    return PodSettings(
        cap_annotation=annotation,
        cap=cap,
        capacity=() if boots_anew else preset.capacity_names,
        queue_bound=preset.queue_bound_names,
        prefill_tokens=preset.prefill_tokens_names,
        container=template.container if template else None,
    )


def _epoch_s(timestamp: str | None) -> float:
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0
