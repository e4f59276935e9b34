"""The GPUs of the node and what NVML says of each: one table of calls, each of which can fail without the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pynvml

from bandkeeper.agent import catalogue, gpm
from bandkeeper.agent.catalogue import Metric

Reading = tuple[Metric, float]
Refused = Callable[[str, int], None]
"""Told the name of a call and NVML's error code."""

DRIVER_ERRORS = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
"""After one of these no call will work until NVML was opened anew."""
LOST_ERRORS = frozenset(
    {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_GPU_NOT_FOUND, pynvml.NVML_ERROR_RESET_REQUIRED}
)
"""After one of these no call for this GPU will work."""
_NEVER = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
_UNKNOWN = frozenset({0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF})  # what NVML writes into a field that it does not know
_ERRORS = {
    code: name.removeprefix("NVML_ERROR_")
    for name, code in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(code, int)
}


class LostError(Exception):
    """The GPU fell off the bus or needs a reset."""


def error_name(code: int) -> str:
    """NVML's name of an error, such as GPU_IS_LOST."""
    return str(_ERRORS.get(code, code))


@dataclass(frozen=True, slots=True)
class Identity:
    """A GPU, or one GPU instance of a MIG GPU; `aliases` are the UUIDs of the instance's MIG devices."""

    index: int
    uuid: str
    model: str
    minor: int | None = None
    instance: int | None = None
    aliases: tuple[str, ...] = ()


# -- calls: each reads one thing of one handle and raises NVMLError ----------------------------------------------------


def _known(metric: Metric, value: float, scale: float = 1.0) -> Iterator[Reading]:
    if value not in _UNKNOWN:
        yield metric, value * scale


def _utilisation(handle: Any) -> Iterator[Reading]:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    yield from _known(catalogue.BUSY, rates.gpu, 0.01)
    yield from _known(catalogue.MEMORY_COPY, rates.memory, 0.01)


def _memory(handle: Any) -> Iterator[Reading]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
    yield from _known(catalogue.MEMORY_TOTAL, memory.total)
    yield from _known(catalogue.MEMORY_USED, memory.used)
    yield from _known(catalogue.MEMORY_FREE, memory.free)


def _power(handle: Any) -> Iterator[Reading]:
    return _known(catalogue.POWER, pynvml.nvmlDeviceGetPowerUsage(handle), 1e-3)


def _power_limit(handle: Any) -> Iterator[Reading]:
    return _known(catalogue.POWER_LIMIT, pynvml.nvmlDeviceGetEnforcedPowerLimit(handle), 1e-3)


def _energy(handle: Any) -> Iterator[Reading]:
    return _known(catalogue.ENERGY, pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), 1e-3)


def _sm_clock(handle: Any) -> Iterator[Reading]:
    return _known(catalogue.SM_CLOCK, pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM), 1e6)


def _memory_clock(handle: Any) -> Iterator[Reading]:
    return _known(catalogue.MEMORY_CLOCK, pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM), 1e6)


def _temperature(handle: Any) -> Iterator[Reading]:
    try:
        value = pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)
    except pynvml.NVMLError_FunctionNotFound:  # drivers before R570
        value = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    return _known(catalogue.TEMPERATURE, value)


_BY_POWER = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
_BY_HEAT = pynvml.nvmlClocksEventReasonSwThermalSlowdown | pynvml.nvmlClocksEventReasonHwThermalSlowdown


def _throttling(handle: Any) -> Iterator[Reading]:
    """1 for what holds the clocks down now, else 0; the pass makes seconds of it."""
    try:
        reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except pynvml.NVMLError_FunctionNotFound:  # drivers before R535 have the older name
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    yield catalogue.POWER_THROTTLED, float(bool(reasons & _BY_POWER))
    yield catalogue.THERMAL_THROTTLED, float(bool(reasons & _BY_HEAT))


def _ecc(kind: int, metric: Metric) -> Callable[[Any], Iterator[Reading]]:
    return lambda handle: _known(metric, pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, pynvml.NVML_VOLATILE_ECC))


def _processes(handle: Any) -> Iterator[Reading]:
    yield catalogue.PROCESSES, float(len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)))


def _pcie(direction: int, metric: Metric) -> Callable[[Any], Iterator[Reading]]:
    return lambda handle: _known(metric, pynvml.nvmlDeviceGetPcieThroughput(handle, direction), 1e3)


@dataclass(frozen=True, slots=True)
class Call:
    """One thing to ask; `name` is NVML's function. A slow one is asked of one GPU a pass, where GPM gives it not."""

    name: str
    read: Callable[[Any], Iterable[Reading]]
    slow: bool = False


OF_INSTANCE = (Call("nvmlDeviceGetMemoryInfo", _memory), Call("nvmlDeviceGetComputeRunningProcesses", _processes))
OF_BOARD = (
    Call("nvmlDeviceGetPowerUsage", _power),
    Call("nvmlDeviceGetEnforcedPowerLimit", _power_limit),
    Call("nvmlDeviceGetTotalEnergyConsumption", _energy),
    Call("nvmlDeviceGetClockInfo(SM)", _sm_clock),
    Call("nvmlDeviceGetClockInfo(MEM)", _memory_clock),
    Call("nvmlDeviceGetTemperature", _temperature),
    Call("nvmlDeviceGetCurrentClocksEventReasons", _throttling),
    Call(
        "nvmlDeviceGetTotalEccErrors(corrected)",
        _ecc(pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, catalogue.ECC_CORRECTED),
    ),
    Call(
        "nvmlDeviceGetTotalEccErrors(uncorrected)",
        _ecc(pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, catalogue.ECC_UNCORRECTED),
    ),
    # Each looks at a window of 20 ms and blocks for as long.
    Call("nvmlDeviceGetPcieThroughput(TX)", _pcie(pynvml.NVML_PCIE_UTIL_TX_BYTES, catalogue.PCIE_SENT), slow=True),
    Call("nvmlDeviceGetPcieThroughput(RX)", _pcie(pynvml.NVML_PCIE_UTIL_RX_BYTES, catalogue.PCIE_RECEIVED), slow=True),
)
_GPM = "nvmlGpmSampleGet"
OF_GPU = (Call("nvmlDeviceGetUtilizationRates", _utilisation), *OF_INSTANCE, *OF_BOARD)


@dataclass(slots=True)
class Device:
    """A handle with the calls that make sense for it, and those that it was found not to support."""

    identity: Identity
    handle: Any
    calls: tuple[Call, ...]
    gpm: gpm.Gpm | None = None
    unsupported: set[str] = field(default_factory=set)

    def read(self, refused: Refused, *, slow: bool) -> Iterator[tuple[str, dict[Metric, float]]]:
        """Each call's name with its readings, none where it failed. Raises LostError, or NVMLError of DRIVER_ERRORS."""
        if self.gpm is not None and _GPM not in self.unsupported:
            of_gpm = self.gpm
            yield _GPM, self._ask(Call(_GPM, lambda _: of_gpm.read(_of_measures(refused))), refused)
        by_gpm = self.gpm is not None and _GPM not in self.unsupported
        for call in self.calls:
            if call.name not in self.unsupported and (not call.slow or (slow and not by_gpm)):
                yield call.name, self._ask(call, refused)

    def _ask(self, call: Call, refused: Refused) -> dict[Metric, float]:
        try:
            return dict(call.read(self.handle))
        except pynvml.NVMLError as error:
            if error.value in DRIVER_ERRORS:
                raise
            if error.value in LOST_ERRORS:
                raise LostError(error_name(error.value)) from error
            if error.value in _NEVER:
                self.unsupported.add(call.name)
            else:
                refused(call.name, error.value)
            return {}

    def close(self) -> None:
        """Free what the device holds in the driver."""
        if self.gpm is not None:
            with suppress(pynvml.NVMLError):  # the driver went and took it along
                self.gpm.close()


def _of_measures(refused: Refused) -> Callable[[int], None]:
    return lambda code: None if code in _NEVER else refused("nvmlGpmMetricsGet", code)


# -- finding them ------------------------------------------------------------------------------------------------------


def find(refused: Refused, clock: Callable[[], float]) -> list[Device]:
    """Every GPU that answers, and the GPU instances of those with MIG on; NVMLError where the driver does not."""
    found: list[Device] = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            found.extend(_of_gpu(index, refused, clock))
        except pynvml.NVMLError as error:
            if error.value in DRIVER_ERRORS:
                raise
            refused("nvmlDeviceGetHandleByIndex", error.value)
    return found


def _of_gpu(index: int, refused: Refused, clock: Callable[[], float]) -> Iterator[Device]:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    gpu = Identity(
        index, _text(pynvml.nvmlDeviceGetUUID(handle)), _text(pynvml.nvmlDeviceGetName(handle)), _minor(handle)
    )
    with_gpm = _has_gpm(handle)
    if not _has_mig(handle):
        measures = {**gpm.RATIOS, **gpm.RATES}
        yield Device(gpu, handle, OF_GPU, gpm.Gpm(handle, None, measures, clock) if with_gpm else None)
        return
    yield Device(gpu, handle, OF_BOARD, gpm.Gpm(handle, None, gpm.RATES, clock) if with_gpm else None)
    for instance, (mig, uuids) in _instances(handle, refused).items():
        identity = Identity(index, gpu.uuid, gpu.model, gpu.minor, instance, tuple(uuids))
        yield Device(identity, mig, OF_INSTANCE, gpm.Gpm(handle, instance, gpm.RATIOS, clock) if with_gpm else None)


def _instances(handle: Any, refused: Refused) -> dict[int, tuple[Any, list[str]]]:
    """By GPU instance: the handle of its first MIG device and the UUIDs of all (one per compute instance)."""
    found: dict[int, tuple[Any, list[str]]] = {}
    for position in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, position)
            instance = pynvml.nvmlDeviceGetGpuInstanceId(mig)
            found.setdefault(instance, (mig, []))[1].append(_text(pynvml.nvmlDeviceGetUUID(mig)))
        except pynvml.NVMLError_NotFound:  # an empty place
            continue
        except pynvml.NVMLError as error:
            if error.value in DRIVER_ERRORS | LOST_ERRORS:
                raise
            refused("nvmlDeviceGetMigDeviceHandleByIndex", error.value)
    return found


def _has_mig(handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False


def _has_gpm(handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
    except pynvml.NVMLError as error:
        if error.value in DRIVER_ERRORS | LOST_ERRORS:
            raise
        return False


def _minor(handle: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetMinorNumber(handle))
    except pynvml.NVMLError as error:
        if error.value in DRIVER_ERRORS | LOST_ERRORS:
            raise
        return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
