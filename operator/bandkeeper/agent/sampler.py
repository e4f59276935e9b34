"""The passes over all GPUs: opens NVML, reads, averages over the window, and opens anew when the driver went away."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pynvml

from bandkeeper.agent import catalogue, devices
from bandkeeper.agent.catalogue import Metric
from bandkeeper.agent.devices import Device, Identity, LostError

REFRESH_S = 60.0
"""GPUs and GPU instances are looked for again this often, and calls once found unsupported are tried again."""
REOPEN_S = 5.0
"""Least time between two tries to open a driver that does not answer."""
_ROUNDS = 1.5
"""What is asked of one GPU a pass stays until its turn comes again, with room for passes that are late."""
_SENTENCES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver here: libnvidia-ml.so.1 cannot be loaded",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not talk to the NVIDIA driver",
}
_THROTTLED = frozenset((catalogue.POWER_THROTTLED, catalogue.THERMAL_THROTTLED))

log = logging.getLogger(__name__)


class DriverReplacedError(Exception):
    """The loaded libnvidia-ml is of another driver than the kernel's: only a new process can load the right one."""


@dataclass(frozen=True, slots=True)
class GPU:
    """A GPU or GPU instance as of one pass; no values when it is lost."""

    identity: Identity
    up: bool
    values: Mapping[Metric, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Frame:
    """What one pass found; replaced whole, never changed. `problem` says why there are no GPUs."""

    at_s: float
    gpus: tuple[GPU, ...] = ()
    problem: str | None = None
    driver: str = ""
    passes: int = 0
    pass_seconds: float = 0.0
    failures: Mapping[tuple[str, str], int] = field(default_factory=dict)


class _Series:
    """The readings of one device inside the window, by call, so that a call that fails takes only its own away."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._by_call: dict[str, dict[Metric, deque[tuple[float, float]]]] = {}

    def add(self, call: str, readings: Mapping[Metric, float], now_s: float) -> None:
        before = self._by_call.get(call, {})
        self._by_call[call] = {metric: before.get(metric) or deque() for metric in readings}
        for metric, value in readings.items():
            points = self._by_call[call][metric]
            points.append((now_s, value))
            while points[0][0] <= now_s - self._window_s:
                points.popleft()

    def values(self, since_s: float) -> dict[Metric, float]:
        """Of the metrics that were read after `since_s`: a call that is not made any more keeps none."""
        return {
            metric: math.fsum(value for _, value in points) / len(points) if metric.mean else points[-1][1]
            for readings in self._by_call.values()
            for metric, points in readings.items()
            if points[-1][0] > since_s
        }


class Sampler:
    """Makes passes; what the last one found stands in `frame`, which other threads may read.

    Parameters
    ----------
    interval_s
        Between two passes.
    window_s
        Over which ratios, rates, power and clocks are averaged.
    """

    def __init__(self, interval_s: float, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval_s = interval_s
        self.frame = Frame(at_s=clock(), problem="the GPUs were not looked at yet")
        self.seen_gpu = False
        self._window_s = window_s
        self._clock = clock
        self._devices: list[Device] | None = None  # None: NVML is not open
        self._up: dict[Identity, bool] = {}  # every GPU that was seen, and whether it answers
        self._series: dict[Identity, _Series] = {}
        self._throttled_s: defaultdict[tuple[Identity, Metric], float] = defaultdict(float)
        self._failures: Counter[tuple[str, str]] = Counter()
        self._problem: str | None = None
        self._driver = ""
        self._passes = 0
        self._pass_seconds = 0.0
        self._last_s: float | None = None
        self._look_at_s = -math.inf

    def step(self) -> None:
        """One pass. What NVML refuses is told in the frame; raises DriverReplacedError only."""
        begun_s = self._clock()
        try:
            if begun_s >= self._look_at_s:
                self._look(begun_s)
            self._read(begun_s)
        except pynvml.NVMLError as error:
            self._gone(error, begun_s)
        self._last_s = begun_s
        self._passes += 1
        self._pass_seconds += self._clock() - begun_s
        in_turn_s = _ROUNDS * len(self._devices or ()) * self.interval_s
        since_s = begun_s - max(self._window_s, in_turn_s)
        self.frame = Frame(
            at_s=self._clock(),
            gpus=tuple(
                GPU(identity, up, self._values(identity, since_s) if up else {}) for identity, up in self._up.items()
            ),
            problem=self._problem,
            driver=self._driver,
            passes=self._passes,
            pass_seconds=self._pass_seconds,
            failures=dict(self._failures),
        )

    def close(self) -> None:
        """Let the driver go."""
        for device in self._devices or ():
            device.close()
        if self._devices is not None:
            with suppress(pynvml.NVMLError):  # it may be gone already
                pynvml.nvmlShutdown()
        self._devices = None

    # -- finding GPUs --------------------------------------------------------------------------------------------------

    def _look(self, now_s: float) -> None:
        if not all(self._up.values()):
            self.close()  # a GPU that was reset answers only after NVML was opened anew
        self._look_at_s = now_s + REFRESH_S
        if self._devices is None:
            pynvml.nvmlInit()
            self._devices = []
            self._driver = str(pynvml.nvmlSystemGetDriverVersion())
        before = {device.identity: device for device in self._devices}
        self._devices = [before.pop(new.identity, new) for new in devices.find(self._refused, self._clock)]
        for device in self._devices:
            device.unsupported.clear()
        for gone in before.values():
            gone.close()
        self._remember()

    def _remember(self) -> None:
        """Keep the GPUs found and, as lost, those that were seen before; a GPU instance goes with its GPU's layout."""
        found = {device.identity: True for device in self._devices or ()}
        present = {identity.uuid for identity in found}
        missing = {identity: False for identity in self._up if identity.uuid not in present}
        self._up = {**found, **missing}
        self._series = {identity: self._series.get(identity) or _Series(self._window_s) for identity in found}
        self.seen_gpu = self.seen_gpu or bool(found)
        self._say(None if found else "NVML answers and knows no GPU")

    def _gone(self, error: pynvml.NVMLError, now_s: float) -> None:
        if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            raise DriverReplacedError(
                "the driver was replaced under this process, which must start anew to load the new libnvidia-ml"
            ) from error
        self.close()
        self._look_at_s = now_s + (REOPEN_S if self.seen_gpu else REFRESH_S)
        self._up = dict.fromkeys(self._up, False)
        self._series.clear()
        self._say(_SENTENCES.get(error.value) or f"NVML failed: {error} ({devices.error_name(error.value)})")

    def _say(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            log.warning("No GPU can be read", extra={"why": problem})
        elif problem is None and self._problem is not None:
            log.info("The GPUs answer", extra={"driver": self._driver})
        self._problem = problem

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self, now_s: float) -> None:
        """Ask every GPU; one that is lost is skipped, and NVMLError is raised where no call at all was answered."""
        lost: set[int] = set()
        answers = 0
        for position, device in enumerate(self._devices or ()):
            if device.identity.index in lost:
                continue
            slow = self._passes % len(self._devices or ()) == position
            try:
                got = self._read_device(device, now_s, slow=slow)
            except LostError as error:
                lost.add(device.identity.index)
                log.warning(
                    "A GPU is lost",
                    extra={"gpu": device.identity.index, "uuid": device.identity.uuid, "error": str(error)},
                )
                self._failures["GPU", str(error)] += 1
                continue
            self._up[device.identity] = got > 0
            answers += got
        if lost:
            self._drop(lost)
        elif self._devices and not answers:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    def _read_device(self, device: Device, now_s: float, *, slow: bool) -> int:
        got = 0
        series = self._series[device.identity]
        for call, readings in device.read(self._refused, slow=slow):
            series.add(call, readings, now_s)
            got += len(readings)
            for metric in readings.keys() & _THROTTLED:
                since_s = now_s - (self._last_s if self._last_s is not None else now_s)
                since_s = min(since_s, 2 * self.interval_s)  # of a longer gap nothing is known
                self._throttled_s[device.identity, metric] += readings[metric] * since_s
        return got

    def _drop(self, lost: set[int]) -> None:
        for device in self._devices or ():
            if device.identity.index in lost:
                self._up[device.identity] = False
        self._devices = [device for device in self._devices or () if device.identity.index not in lost]

    def _values(self, identity: Identity, since_s: float) -> dict[Metric, float]:
        values = self._series[identity].values(since_s)
        for metric in values.keys() & _THROTTLED:
            values[metric] = self._throttled_s[identity, metric]
        return values

    def _refused(self, call: str, code: int) -> None:
        failure = call, devices.error_name(code)
        self._failures[failure] += 1
        if self._failures[failure] == 1:
            log.warning("NVML refused a call; its metrics are left out", extra={"call": call, "error": failure[1]})
