"""What the agent reads from NVML and GPM: values and units, and that one failure takes one metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.agent.standin import GIB, H100, NVML, Passes, gpu, mig, uuid


def values(frame: dict[str, Any], index: int = 0, instance: int | None = None) -> dict[str, float]:
    """The figures of one GPU or GPU instance."""
    (found,) = [one for one in frame["gpus"] if (one["index"], one["instance"]) == (index, instance)]
    of: dict[str, float] = found["values"]
    return of


def ups(frame: dict[str, Any]) -> list[bool]:
    return [one["up"] for one in frame["gpus"]]


def test_a_whole_gpu_in_base_units(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    frame = passes.step(times=2)
    assert frame["problem"] is None
    assert frame["failures"] == {}
    assert [(one["uuid"], one["model"], one["up"]) for one in frame["gpus"]] == [(uuid(0), H100, True)]
    assert values(frame) == pytest.approx(
        {
            "busy_ratio": 0.90,
            "memory_copy_ratio": 0.40,
            "memory_total_bytes": 80 * GIB,
            "memory_free_bytes": 20 * GIB,
            "memory_used_bytes": 59 * GIB,
            "power_watts": 500.0,
            "power_limit_watts": 700.0,
            "energy_joules_total": 123_456.0,
            "sm_clock_hertz": 1.755e9,
            "memory_clock_hertz": 2.619e9,
            "temperature_celsius": 50,
            "power_throttled_seconds_total": 0.0,
            "thermal_throttled_seconds_total": 0.0,
            "ecc_corrected_errors_total": 2,
            "ecc_uncorrected_errors_total": 0,
            "processes": 1,
            "graphics_engine_active_ratio": 0.975,
            "sm_active_ratio": 0.8025,
            "sm_occupancy_ratio": 0.315,
            "tensor_active_ratio": 0.4275,
            "dram_active_ratio": 0.615,
            "fp64_active_ratio": 0.0025,
            "fp32_active_ratio": 0.055,
            "fp16_active_ratio": 0.0175,
            "pcie_sent_bytes_per_second": 10.5 * 2**20,
            "pcie_received_bytes_per_second": 20.5 * 2**20,
            "nvlink_received_bytes_per_second": 30.5 * 2**20,
            "nvlink_sent_bytes_per_second": 40.5 * 2**20,
        },
        rel=1e-12,
    )


def test_each_gpu_keeps_its_own_figures(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 8}, *(gpu(number) for number in range(8)))
    frame = passes.step(times=2)
    for number in range(8):
        of = values(frame, number)
        assert of["busy_ratio"] == pytest.approx(0.90 + number / 100)
        assert of["sm_active_ratio"] == pytest.approx(0.8025 + number / 100)
        assert of["memory_used_bytes"] == (59 + number) * GIB
        assert of["processes"] == 1 + number


def test_gpm_needs_two_samples_and_the_rest_does_not(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    first = values(passes.step())
    assert "sm_active_ratio" not in first
    assert first["busy_ratio"] == 0.90
    assert "sm_active_ratio" in values(passes.step())


def test_samples_that_are_too_close_say_nothing_and_lose_nothing(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    passes.step()
    assert "sm_active_ratio" not in values(passes.step(0.05))
    assert "sm_active_ratio" in values(passes.step(0.06))  # 0.11 s since the base


def test_a_gpu_without_gpm_has_pcie_from_nvml_and_no_pipes(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 2}, gpu(0, gpm=False), gpu(1, gpm=False))
    frame = passes.step(times=2)  # each pass asks one GPU for PCIe: the call blocks
    for number in range(2):
        of = values(frame, number)
        assert not [name for name in of if name.startswith(("sm_active", "tensor", "dram", "fp", "nvlink", "graphics"))]
        assert of["pcie_sent_bytes_per_second"] == 1000e3 + number * 1e3
        assert of["pcie_received_bytes_per_second"] == 2000e3 + number * 1e3


def test_ratios_rates_power_and_clocks_are_means_of_the_window(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    passes.step(times=10)
    nvml.set({"gpu0.utilization": "0 0", "gpu0.power": 100_000, "gpu0.gpm.2": 0, "gpu0.temperature": 30})
    of = values(passes.step())  # the window is 5 s: four of the old, one of the new
    assert of["busy_ratio"] == pytest.approx(0.9 * 4 / 5)
    assert of["sm_active_ratio"] == pytest.approx(0.8025 * 4 / 5)
    assert of["power_watts"] == pytest.approx((4 * 500 + 100) / 5)
    assert of["temperature_celsius"] == 30
    of = values(passes.step(times=4))
    assert (of["busy_ratio"], of["sm_active_ratio"], of["power_watts"]) == (0.0, 0.0, 100.0)


@pytest.mark.parametrize(
    ("reasons", "power_s", "thermal_s"),
    [(0x1, 0, 0), (0x4, 3, 0), (0x80, 3, 0), (0x20, 0, 3), (0x40 | 0x8, 0, 3), (0x4 | 0x20, 3, 3), (0x8 | 0x10, 0, 0)],
)
def test_clock_event_reasons_become_seconds(
    nvml: NVML, passes: Passes, reasons: int, power_s: float, thermal_s: float
) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    passes.step()
    nvml.set({"gpu0.reasons": hex(reasons)})
    passes.step(times=3)
    nvml.set({"gpu0.reasons": 0})
    of = values(passes.step(times=2))
    assert of["power_throttled_seconds_total"] == power_s
    assert of["thermal_throttled_seconds_total"] == thermal_s


def test_of_a_gap_between_passes_two_intervals_at_most_count_as_throttled(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    passes.step()
    nvml.set({"gpu0.reasons": 4})
    assert values(passes.step(30.0))["power_throttled_seconds_total"] == 2.0


# -- MIG ---------------------------------------------------------------------------------------------------------------


def test_mig_instances_have_ratios_and_memory_and_the_board_has_the_rest(nvml: NVML, passes: Passes) -> None:
    instances = {1: (uuid(101, "MIG"),), 3: (uuid(103, "MIG"), uuid(104, "MIG"))}
    nvml.set({"gpus": 2}, gpu(0), mig(0, instances), gpu(1))
    frame = passes.step(times=2)
    assert [(one["index"], one["instance"]) for one in frame["gpus"]] == [(0, None), (0, 1), (0, 3), (1, None)]
    assert [one["aliases"] for one in frame["gpus"] if one["instance"] == 3] == [[uuid(103, "MIG"), uuid(104, "MIG")]]
    assert {one["uuid"] for one in frame["gpus"] if one["index"] == 0} == {uuid(0)}
    assert values(frame, 0, 3) == pytest.approx(
        {
            "memory_total_bytes": 10 * GIB,
            "memory_free_bytes": 6 * GIB,
            "memory_used_bytes": 4 * GIB,
            "processes": 3,
            "graphics_engine_active_ratio": 0.31,
            "sm_active_ratio": 0.32,
            "sm_occupancy_ratio": 0.33,
            "tensor_active_ratio": 0.35,
            "dram_active_ratio": 0.40,
            "fp64_active_ratio": 0.41,
            "fp32_active_ratio": 0.42,
            "fp16_active_ratio": 0.43,
        }
    )
    assert values(frame, 0, 1)["sm_active_ratio"] == pytest.approx(0.12)
    board = values(frame, 0)
    assert board["power_watts"] == 500.0
    assert board["nvlink_sent_bytes_per_second"] == 40.5 * 2**20
    assert not [name for name in board if name.endswith("_ratio") or name.startswith("memory_total")]


def test_a_new_layout_is_found_and_the_old_instances_go(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 1}, gpu(0), mig(0, {1: (uuid(101, "MIG"),), 2: (uuid(102, "MIG"),)}))
    passes.step()
    nvml.set({"gpu0.mig0": None, "gpu0.mig1": None}, mig(0, {5: (uuid(105, "MIG"),)}))
    frame = passes.step(61.0)
    assert [one["instance"] for one in frame["gpus"]] == [None, 5]
    assert ups(frame) == [True, True]


# -- failures ----------------------------------------------------------------------------------------------------------

LOSSES = {
    "nvmlDeviceGetUtilizationRates": {"busy_ratio", "memory_copy_ratio"},
    "nvmlDeviceGetMemoryInfo_v2": {"memory_total_bytes", "memory_used_bytes", "memory_free_bytes"},
    "nvmlDeviceGetPowerUsage": {"power_watts"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit_watts"},
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_joules_total"},
    "nvmlDeviceGetClockInfo": {"sm_clock_hertz", "memory_clock_hertz"},
    "nvmlDeviceGetTemperatureV": {"temperature_celsius"},
    "nvmlDeviceGetCurrentClocksEventReasons": {"power_throttled_seconds_total", "thermal_throttled_seconds_total"},
    "nvmlDeviceGetTotalEccErrors": {"ecc_corrected_errors_total", "ecc_uncorrected_errors_total"},
    "nvmlDeviceGetComputeRunningProcesses_v3": {"processes"},
}


@pytest.mark.parametrize("call", LOSSES)
@pytest.mark.parametrize("code", [3, 4, 10, 999], ids=["not-supported", "no-permission", "timeout", "unknown"])
def test_a_call_that_fails_loses_its_own_metrics_and_gets_them_back(
    nvml: NVML, passes: Passes, call: str, code: int
) -> None:
    nvml.set({"gpus": 2}, gpu(0), gpu(1))
    whole = values(passes.step(times=2))
    nvml.set({f"gpu0.error.{call}": code})
    frame = passes.step()
    assert whole.keys() - values(frame).keys() == LOSSES[call]
    assert values(frame, 1).keys() == whole.keys()
    assert ups(frame) == [True, True]
    assert (frame["failures"] == {}) == (code == 3)  # a GPU that lacks something is no failure
    nvml.set({f"gpu0.error.{call}": None})
    assert values(passes.step(61.0)).keys() == whole.keys()


def test_a_measure_that_gpm_refuses_or_does_not_know_is_lost_alone(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    whole = values(passes.step(times=2))
    nvml.set({"gpu0.gpm.5.error": 999, "gpu0.gpm.10": "nan", "gpu0.gpm.12": None})
    frame = passes.step()
    assert whole.keys() - values(frame).keys() == {"tensor_active_ratio", "dram_active_ratio", "fp32_active_ratio"}
    assert frame["failures"] == {"nvmlGpmMetricsGet UNKNOWN": 1}


def test_gpm_that_may_not_be_read_costs_gpm_alone(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 1}, gpu(0), {"gpu0.error.nvmlGpmSampleGet": 4})
    frame = passes.step(times=3)
    assert "sm_active_ratio" not in values(frame)
    assert values(frame)["busy_ratio"] == 0.90
    assert frame["failures"] == {"nvmlGpmSampleGet NO_PERMISSION": 3}


def test_what_is_not_asked_for_any_more_goes_with_the_window(nvml: NVML, passes: Passes) -> None:
    lacking = {"gpu0.error.nvmlGpmSampleGet": 3}
    nvml.set({"gpus": 1}, gpu(0), lacking)
    assert values(passes.step(times=2))["pcie_sent_bytes_per_second"] == 1000e3  # by NVML
    nvml.set({"gpu0.error.nvmlGpmSampleGet": 4})  # GPM is there now, so NVML is not asked, and may not be read
    assert "pcie_sent_bytes_per_second" not in values(passes.step(61.0))
    nvml.set({"gpu0.error.nvmlGpmSampleGet": None})
    assert values(passes.step(times=2))["pcie_sent_bytes_per_second"] == 10.5 * 2**20


def test_what_is_asked_for_in_turn_stays_until_the_next_turn(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 8}, *(gpu(number, gpm=False) for number in range(8)))
    for frame in [passes.step(times=8), *(passes.step() for _ in range(8))]:  # the window is 5 s, a round 8 s
        assert all("pcie_sent_bytes_per_second" in values(frame, number) for number in range(8))


def test_what_nvml_marks_as_unknown_is_left_out(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 1}, gpu(0), {"gpu0.power_limit": 0xFFFFFFFF, "gpu0.ecc_corrected": 0xFFFFFFFFFFFFFFFF})
    of = values(passes.step())
    assert "power_limit_watts" not in of
    assert "ecc_corrected_errors_total" not in of
    assert "ecc_uncorrected_errors_total" in of


# -- lost GPUs, drivers that go and come -------------------------------------------------------------------------------


def test_a_lost_gpu_is_down_the_others_go_on_and_it_comes_back(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 2}, gpu(0), gpu(1))
    passes.step(times=2)
    nvml.set({"gpu0.lost": 15})
    for frame in (passes.step(), passes.step(61.0), passes.step(61.0)):
        assert sorted((one["index"], one["up"], bool(one["values"])) for one in frame["gpus"]) == [
            (0, False, False),
            (1, True, True),
        ]
        assert frame["problem"] is None
    assert any(failure.endswith("GPU_IS_LOST") for failure in frame["failures"])
    nvml.set({"gpu0.lost": None})
    passes.step(61.0)
    assert ups(passes.step()) == [True, True]


def test_a_lost_mig_gpu_takes_its_instances_along(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 2}, gpu(0), mig(0, {1: (uuid(101, "MIG"),)}), gpu(1))
    passes.step(times=2)
    nvml.set({"gpu0.lost": 15})
    frame = passes.step()
    assert {(one["index"], one["instance"]): one["up"] for one in frame["gpus"]} == {
        (0, None): False,
        (0, 1): False,
        (1, None): True,
    }


@pytest.mark.parametrize("code", [1, 9, 999], ids=["uninitialised", "not-loaded", "unknown"])
def test_a_driver_that_restarts_is_opened_anew(nvml: NVML, passes: Passes, code: int) -> None:
    nvml.set({"gpus": 2}, gpu(0), gpu(1))
    passes.step(times=2)
    nvml.set({"epoch": 1, "epoch.error": code, "init": 9})
    frame = passes.step()
    assert ups(frame) == [False, False]
    assert [one["values"] for one in frame["gpus"]] == [{}, {}]
    assert passes.step(6.0)["problem"] == "the NVIDIA driver is not loaded"
    nvml.set({"init": None, "driver": "590.10"})
    passes.step(6.0)
    frame = passes.step()
    assert (frame["problem"], frame["driver"], ups(frame)) == (None, "590.10", [True, True])
    assert values(frame, 1)["sm_active_ratio"] == pytest.approx(0.8125)


def test_another_driver_than_the_loaded_library_asks_for_a_new_process(nvml: NVML, passes: Passes) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    passes.step()
    nvml.set({"error.nvmlDeviceGetPowerUsage": 18})
    assert "must start anew" in passes.step()["replaced"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ({"init": 12}, "libnvidia-ml.so.1 cannot be loaded"),
        ({"init": 9}, "driver is not loaded"),
        ({"init": 4}, "may not talk"),
        ({"gpus": 0}, "knows no GPU"),
        ({"init": 999}, "UNKNOWN"),
    ],
)
def test_no_gpu_is_a_sentence_and_one_that_comes_is_found(
    nvml: NVML, passes: Passes, script: dict[str, object], says: str
) -> None:
    nvml.set(script)
    frame = passes.step()
    assert frame["gpus"] == []
    assert says in frame["problem"]
    nvml.set({"init": None, "gpus": 1}, gpu(0))
    frame = passes.step(61.0)
    assert (frame["problem"], ups(frame)) == (None, [True])


def test_a_library_that_cannot_be_loaded(library: Path, tmp_path: Path) -> None:
    broken = tmp_path / library.name
    broken.write_text("no library")
    running = Passes(NVML(broken, tmp_path))
    assert "libnvidia-ml.so.1 cannot be loaded" in running.step()["problem"]
    assert running.close() == 0
