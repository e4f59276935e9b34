"""The agent on a real GPU. Without one each test is skipped, with the reason, and counted as skipped."""

from __future__ import annotations

import pytest

from tests.gpu.measure import LOADS, Measured, measure, table, why_not

SECONDS = 6.0


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    """A few loads, each once."""
    if reason := why_not():
        pytest.skip(reason)
    return {
        load: measure(load, SECONDS) for load in ("idle", "gemm", "stream", "tiny", "host", "decode:1", "decode:256")
    }


def test_every_ratio_is_one(measured: dict[str, Measured]) -> None:
    print(table(list(measured.values())))
    for load, one in measured.items():
        assert not [name for name, value in one.read.items() if name.endswith("_ratio") and not 0 <= value <= 1.02], (
            load
        )


def test_an_idle_gpu_is_idle_and_a_loaded_one_busy(measured: dict[str, Measured]) -> None:
    assert measured["idle"].read["busy_ratio"] < 0.1
    assert measured["gemm"].read["busy_ratio"] > 0.9
    assert measured["gemm"].read["power_watts"] > measured["idle"].read["power_watts"]


def test_gpm_tells_the_loads_apart(measured: dict[str, Measured]) -> None:
    gemm, stream, tiny = (measured[load].read for load in ("gemm", "stream", "tiny"))
    if "sm_active_ratio" not in gemm:
        pytest.skip("this GPU has no GPM (it came with Hopper): SM, tensor and DRAM activity were not checked")
    assert gemm["tensor_active_ratio"] > stream["tensor_active_ratio"]
    assert stream["dram_active_ratio"] > gemm["dram_active_ratio"]
    assert tiny["sm_active_ratio"] < gemm["sm_active_ratio"]


def test_pcie_is_bytes_per_second(measured: dict[str, Measured]) -> None:
    copied = measured["host"]
    seen = copied.read["pcie_received_bytes_per_second"] / copied.counted["host_bytes_per_second"]
    assert 0.8 < seen < 1.5  # headers come on top; MiB/s taken for bytes/s would be off a millionfold


def test_the_loads_of_the_table_are_those_that_run() -> None:
    assert {"idle", "gemm", "stream", "tiny", "decode:1", "decode:256"} <= set(LOADS)
