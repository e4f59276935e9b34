"""GPU, container and model-work signals through a real Prometheus, from series written as each exporter writes them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from bandkeeper.api.signals import LATENCY_SIGNALS, Signal
from bandkeeper.api.snapshot import GapReason, GPUs
from bandkeeper.signals.collector import ASIDE_EVERY_S, Collector, CollectorSettings
from bandkeeper.signals.presets import PRESETS, containers, gpu, work
from bandkeeper.signals.prometheus import PrometheusServer
from bandkeeper.signals.want import Observations, Want
from tests.cluster import Prometheus
from tests.test_signals import Exporters, Page, added, gap, scrapes_on_time, values, with_timestamp

pytestmark = pytest.mark.cluster

RATE_WINDOW_S = 3.0
SLOW_WINDOW_S = 2.5 * RATE_WINDOW_S  # what is asked aside has longer windows
H100 = "NVIDIA H100 80GB HBM3"
BLANK_32, BLANK_FLOAT, BLANK_64 = "2147483632", "140737488355328", "9223372036854775794"
GIB = 1024.0**3

# One GPU, in base units; seconds of throttling grow by a share of each second.
BUSY = {
    Signal.GPU_UTILIZATION: 0.97,
    Signal.GR_ENGINE_ACTIVE: 0.9,
    Signal.SM_ACTIVE: 0.7,
    Signal.SM_OCCUPANCY: 0.3,
    Signal.TENSOR_ACTIVE: 0.4,
    Signal.DRAM_ACTIVE: 0.6,
    Signal.FP64_ACTIVE: 0.02,
    Signal.FP32_ACTIVE: 0.1,
    Signal.FP16_ACTIVE: 0.05,
    Signal.MEMORY_COPY_UTILIZATION: 0.5,
    Signal.FRAMEBUFFER_USED: 60 * GIB,
    Signal.FRAMEBUFFER_FREE: 20 * GIB,
    Signal.POWER: 350.5,
    Signal.POWER_LIMIT: 700.0,
    Signal.SM_CLOCK: 1.98e9,
    Signal.MEMORY_CLOCK: 2.619e9,
    Signal.GPU_TEMPERATURE: 61.0,
    Signal.POWER_THROTTLED: 0.25,
    Signal.THERMAL_THROTTLED: 0.0,
    Signal.PCIE_SENT: 2e9,
    Signal.PCIE_RECEIVED: 3e9,
    Signal.NVLINK_SENT: 4e10,
    Signal.NVLINK_RECEIVED: 5e10,
}
COOLER = BUSY | {
    Signal.GPU_UTILIZATION: 0.51,
    Signal.DRAM_ACTIVE: 0.4,
    Signal.FRAMEBUFFER_USED: 10 * GIB,
    Signal.POWER: 150.0,
    Signal.SM_CLOCK: 1.02e9,
    Signal.GPU_TEMPERATURE: 43.0,
    Signal.POWER_THROTTLED: 0.0,
}
OF_BOTH = BUSY | {  # ratios and clocks are means, amounts are sums, the hottest and the most throttled one count
    Signal.GPU_UTILIZATION: 0.74,
    Signal.DRAM_ACTIVE: 0.5,
    Signal.FRAMEBUFFER_USED: 70 * GIB,
    Signal.FRAMEBUFFER_FREE: 40 * GIB,
    Signal.POWER: 500.5,
    Signal.POWER_LIMIT: 1400.0,
    Signal.SM_CLOCK: 1.5e9,
    Signal.PCIE_SENT: 4e9,
    Signal.PCIE_RECEIVED: 6e9,
    Signal.NVLINK_SENT: 8e10,
    Signal.NVLINK_RECEIVED: 1e11,
}
THROTTLED = {Signal.POWER_THROTTLED, Signal.THERMAL_THROTTLED}

# The exporters' own names and units, by signal; the factor is from the signal's unit to theirs.
CLASSIC = {
    Signal.GPU_UTILIZATION: ("DCGM_FI_DEV_GPU_UTIL", 100),
    Signal.GR_ENGINE_ACTIVE: ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 1),
    Signal.SM_ACTIVE: ("DCGM_FI_PROF_SM_ACTIVE", 1),
    Signal.SM_OCCUPANCY: ("DCGM_FI_PROF_SM_OCCUPANCY", 1),
    Signal.TENSOR_ACTIVE: ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 1),
    Signal.DRAM_ACTIVE: ("DCGM_FI_PROF_DRAM_ACTIVE", 1),
    Signal.FP64_ACTIVE: ("DCGM_FI_PROF_PIPE_FP64_ACTIVE", 1),
    Signal.FP32_ACTIVE: ("DCGM_FI_PROF_PIPE_FP32_ACTIVE", 1),
    Signal.FP16_ACTIVE: ("DCGM_FI_PROF_PIPE_FP16_ACTIVE", 1),
    Signal.MEMORY_COPY_UTILIZATION: ("DCGM_FI_DEV_MEM_COPY_UTIL", 100),
    Signal.FRAMEBUFFER_USED: ("DCGM_FI_DEV_FB_USED", 2**-20),
    Signal.FRAMEBUFFER_FREE: ("DCGM_FI_DEV_FB_FREE", 2**-20),
    Signal.POWER: ("DCGM_FI_DEV_POWER_USAGE", 1),
    Signal.POWER_LIMIT: ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", 1),
    Signal.SM_CLOCK: ("DCGM_FI_DEV_SM_CLOCK", 1e-6),
    Signal.MEMORY_CLOCK: ("DCGM_FI_DEV_MEM_CLOCK", 1e-6),
    Signal.GPU_TEMPERATURE: ("DCGM_FI_DEV_GPU_TEMP", 1),
    Signal.POWER_THROTTLED: ("DCGM_FI_DEV_POWER_VIOLATION", 1e9),
    Signal.THERMAL_THROTTLED: ("DCGM_FI_DEV_THERMAL_VIOLATION", 1e9),
    Signal.PCIE_SENT: ("DCGM_FI_PROF_PCIE_TX_BYTES", 1),
    Signal.PCIE_RECEIVED: ("DCGM_FI_PROF_PCIE_RX_BYTES", 1),
    Signal.NVLINK_SENT: ("DCGM_FI_PROF_NVLINK_TX_BYTES", 1),
    Signal.NVLINK_RECEIVED: ("DCGM_FI_PROF_NVLINK_RX_BYTES", 1),
}
NEW = CLASSIC | {
    Signal.GPU_UTILIZATION: ("DCGM_FI_DEV_GPU_UTIL_RATIO", 1),
    Signal.GR_ENGINE_ACTIVE: ("DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO", 1),
    Signal.SM_ACTIVE: ("DCGM_FI_PROF_SM_UTIL_RATIO", 1),
    Signal.SM_OCCUPANCY: ("DCGM_FI_PROF_SM_OCCUPANCY_RATIO", 1),
    Signal.TENSOR_ACTIVE: ("DCGM_FI_PROF_TENSOR_UTIL_RATIO", 1),
    Signal.DRAM_ACTIVE: ("DCGM_FI_PROF_DRAM_UTIL_RATIO", 1),
    Signal.FP64_ACTIVE: ("DCGM_FI_PROF_FP64_UTIL_RATIO", 1),
    Signal.FP32_ACTIVE: ("DCGM_FI_PROF_FP32_UTIL_RATIO", 1),
    Signal.FP16_ACTIVE: ("DCGM_FI_PROF_FP16_UTIL_RATIO", 1),
    Signal.MEMORY_COPY_UTILIZATION: ("DCGM_FI_DEV_MEMORY_UTIL_RATIO", 1),
    Signal.FRAMEBUFFER_USED: ("DCGM_FI_DEV_FB_USED_BYTES", 1),
    Signal.FRAMEBUFFER_FREE: ("DCGM_FI_DEV_FB_FREE_BYTES", 1),
    Signal.POWER: ("DCGM_FI_DEV_BOARD_POWER_WATTS", 1),
    Signal.POWER_LIMIT: ("DCGM_FI_DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS", 1),
    Signal.SM_CLOCK: ("DCGM_FI_DEV_SM_CLOCK_HERTZ", 1),
    Signal.MEMORY_CLOCK: ("DCGM_FI_DEV_MEMORY_CLOCK_HERTZ", 1),
    Signal.GPU_TEMPERATURE: ("DCGM_FI_DEV_GPU_TEMP_CELSIUS", 1),
    Signal.POWER_THROTTLED: ("DCGM_FI_DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL", 1),
    Signal.THERMAL_THROTTLED: ("DCGM_FI_DEV_GPU_THERMAL_THROTTLE_SECONDS_TOTAL", 1),
}
AGENT = {
    Signal.GPU_UTILIZATION: ("busy_ratio", 1),
    Signal.GR_ENGINE_ACTIVE: ("graphics_engine_active_ratio", 1),
    Signal.SM_ACTIVE: ("sm_active_ratio", 1),
    Signal.SM_OCCUPANCY: ("sm_occupancy_ratio", 1),
    Signal.TENSOR_ACTIVE: ("tensor_active_ratio", 1),
    Signal.DRAM_ACTIVE: ("dram_active_ratio", 1),
    Signal.FP64_ACTIVE: ("fp64_active_ratio", 1),
    Signal.FP32_ACTIVE: ("fp32_active_ratio", 1),
    Signal.FP16_ACTIVE: ("fp16_active_ratio", 1),
    Signal.MEMORY_COPY_UTILIZATION: ("memory_copy_ratio", 1),
    Signal.FRAMEBUFFER_USED: ("memory_used_bytes", 1),
    Signal.FRAMEBUFFER_FREE: ("memory_free_bytes", 1),
    Signal.POWER: ("power_watts", 1),
    Signal.POWER_LIMIT: ("power_limit_watts", 1),
    Signal.SM_CLOCK: ("sm_clock_hertz", 1),
    Signal.MEMORY_CLOCK: ("memory_clock_hertz", 1),
    Signal.GPU_TEMPERATURE: ("temperature_celsius", 1),
    Signal.POWER_THROTTLED: ("power_throttled_seconds_total", 1),
    Signal.THERMAL_THROTTLED: ("thermal_throttled_seconds_total", 1),
    Signal.PCIE_SENT: ("pcie_sent_bytes_per_second", 1),
    Signal.PCIE_RECEIVED: ("pcie_received_bytes_per_second", 1),
    Signal.NVLINK_SENT: ("nvlink_sent_bytes_per_second", 1),
    Signal.NVLINK_RECEIVED: ("nvlink_received_bytes_per_second", 1),
}
DEFAULT = set(CLASSIC) - {  # what dcgm-exporter 4.8 exports without a list of one's own
    Signal.SM_ACTIVE,
    Signal.SM_OCCUPANCY,
    Signal.FP64_ACTIVE,
    Signal.FP32_ACTIVE,
    Signal.FP16_ACTIVE,
    Signal.POWER_LIMIT,
    Signal.NVLINK_SENT,
    Signal.NVLINK_RECEIVED,
    *THROTTLED,
}
# Fields that hold for a board only; under MIG the exporter shows them of each instance all the same.
NOT_OF_AN_INSTANCE = {
    Signal.GPU_UTILIZATION,
    Signal.MEMORY_COPY_UTILIZATION,
    Signal.PCIE_SENT,
    Signal.PCIE_RECEIVED,
    Signal.NVLINK_SENT,
    Signal.NVLINK_RECEIVED,
}


OF_A_BOARD = NOT_OF_AN_INSTANCE | {Signal.POWER, Signal.POWER_LIMIT}
MIG_MODEL = "NVIDIA A100-SXM4-80GB"


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU, or MIG instance, as one of its pods has it. `raw` are values written as they are, by signal."""

    pod: str = ""
    namespace: str = "serving"
    index: int = 0
    node: str = "node-1"
    shows: Mapping[Signal, float] = field(default_factory=lambda: BUSY)
    raw: Mapping[Signal, str] = field(default_factory=dict)
    only: frozenset[Signal] = frozenset(CLASSIC)
    model: str = H100
    instance: str = ""
    replica: str = ""
    shared: bool = False


def dcgm(*cards: Card, host: str = "Hostname", uuid: str = "UUID", new: bool = False) -> Page:
    """dcgm-exporter: to 4.8.2, or with `host="hostname"` from there, or with `new` from 4.9."""

    def page(at_s: float) -> str:
        lines = []
        for signal, (name, factor) in (NEW if new else CLASSIC).items():
            for card in cards:
                if signal not in card.only or (card.instance and signal in NOT_OF_AN_INSTANCE):
                    continue
                driver = "DCGM_FI_SYSTEM_DRIVER_VERSION" if new else "DCGM_FI_DRIVER_VERSION"
                labels = {
                    "gpu": card.index,
                    uuid: f"GPU-{card.node}-{card.index}",
                    "pci_bus_id": f"00000000:{card.index:02}:00.0",
                    "device": f"nvidia{card.index}",
                    "model_name" if new else "modelName": card.model,
                }
                if card.instance:
                    labels |= {"GPU_I_PROFILE": "3g.40gb", "GPU_I_ID": card.instance}
                labels |= {host: card.node, driver: "570.86.15"}
                if card.pod:
                    labels |= {"container": "server", "namespace": card.namespace, "pod": card.pod}
                if card.replica:
                    labels |= {"vgpu": card.replica}
                lines.append(f"{name}{written(labels)} {shown(card, signal, factor, at_s)}")
        return "\n".join(lines) + "\n"

    return page


def agent(*cards: Card) -> Page:
    def page(at_s: float) -> str:
        lines = []
        for card in cards:
            labels = written(
                {
                    "gpu": card.index,
                    "uuid": f"GPU-{card.node}-{card.index}",
                    "model": card.model,
                    "namespace": card.namespace if card.pod else "",
                    "pod": card.pod,
                    "container": "server" if card.pod else "",
                    "mig": card.instance,
                    "shared": "true" if card.shared else "false",
                }
            )
            lines.append(f"bandkeeper_gpu_info{labels} 1")
            for signal, (name, factor) in AGENT.items():
                if signal in card.only:
                    lines.append(f"bandkeeper_gpu_{name}{labels} {shown(card, signal, factor, at_s)}")
        return "\n".join(lines) + "\n"

    return page


def written(labels: Mapping[str, object]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def shown(card: Card, signal: Signal, factor: float, at_s: float) -> str:
    value = card.shows[signal] * factor * (at_s if signal in THROTTLED else 1)
    return card.raw.get(signal, f"{value:.9g}")


def cadvisor(pod: str, *, limited: bool = True, namespace: str = "serving") -> Page:
    """The kubelet's /metrics/cadvisor of one pod with two containers: 3 cores and 1 core, throttled 1 period in 5."""

    def page(at_s: float) -> str:
        lines = []
        for container, share in (("server", 3.0), ("sidecar", 1.0), ("POD", 0.0), ("", 4.0)):
            own = {
                "container": container,
                "id": f"/kubepods/pod1/{container}",
                "image": "registry/x:1" * bool(container),
            }
            own |= {"name": container and f"name-of-{container}", "namespace": namespace, "pod": pod}
            lines.append(f"container_cpu_usage_seconds_total{written({**own, 'cpu': 'total'})} {share * at_s}")
            if limited and container in ("server", "sidecar"):
                lines.append(f"container_cpu_cfs_periods_total{written(own)} {10 * at_s}")
                lines.append(f"container_cpu_cfs_throttled_periods_total{written(own)} {(share - 1) * at_s * 2}")
            for device in ("/dev/nvme0n1", "/dev/nvme1n1"):
                lines.append(f"container_fs_reads_bytes_total{written({**own, 'device': device})} {share * 1e6 * at_s}")
                lines.append(
                    f"container_fs_writes_bytes_total{written({**own, 'device': device})} {share * 1e5 * at_s}"
                )
            if container in ("POD", ""):
                continue
        sandbox = {"container": "", "id": "/kubepods/pod1", "image": "", "name": "", "namespace": namespace, "pod": pod}
        for interface, per_s in (("eth0", 1e6), ("lo", 9e9)):
            of = {**sandbox, "interface": interface}
            lines.append(f"container_network_receive_bytes_total{written(of)} {per_s * at_s}")
            lines.append(f"container_network_transmit_bytes_total{written(of)} {2 * per_s * at_s}")
        return "\n".join(lines) + "\n"

    return page


def mfu(server: str, *ranks: Mapping[str, str], flops: float = 4e14) -> Page:
    """vLLM or SGLang with --enable-mfu-metrics: each engine or rank counts for one GPU."""

    def page(at_s: float) -> str:
        running = {"vllm": "vllm:num_requests_running", "sglang": "sglang:num_running_reqs"}[server]
        lines = []
        for rank in ranks:
            labels = written({"model_name": "llama", **rank})
            lines.append(f"{running}{labels} 7")
            lines.append(f"{server}:estimated_flops_per_gpu_total{labels} {flops * at_s:.9g}")
            lines.append(f"{server}:estimated_read_bytes_per_gpu_total{labels} {2e12 * at_s:.9g}")
            lines.append(f"{server}:estimated_write_bytes_per_gpu_total{labels} {1e11 * at_s:.9g}")
        return "\n".join(lines) + "\n"

    return page


GENERATIONS = {
    "classic-0": "dcgm-exporter",
    "renamed-host-0": "dcgm-exporter",
    "new-0": "dcgm-exporter 4.9",
    "agent-0": "bandkeeper agent",
}


def pair(pod: str, **raw: str) -> tuple[Card, Card]:
    """The two GPUs of a pod; `raw` are values of both by the signals' names, written as they are."""
    first = Card(pod=pod, node=f"node-of-{pod}", raw={Signal(name): value for name, value in raw.items()})
    return first, replace(first, index=1, shows=COOLER)


def trio(pod: str, shows: Mapping[Signal, float]) -> list[Card]:
    """The three GPUs of a pod, the last of which shows that."""
    cards = [Card(pod=pod, node=f"node-of-{pod}", index=index) for index in range(3)]
    return [*cards[:2], replace(cards[2], shows=shows)]


def instance_of(number: str, pod: str) -> Card:
    return Card(pod=pod, instance=number, node="node-mig", model=MIG_MODEL)


@pytest.fixture(scope="module")
def exporters() -> Iterator[Exporters]:
    found = Exporters()
    yield found
    found.close()


@pytest.fixture(scope="module")
def prometheus(exporters: Exporters, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    def node(page: Page, job: str = "dcgm", *, honoured: bool = False) -> None:
        """A node's exporter, found as a pod of a DaemonSet."""
        job = f"{job}-{'honoured' if honoured else 'plain'}"
        labels = {"namespace": "gpu-operator", "pod": f"{job}-{len(exporters.pages)}", "container": "exporter"}
        exporters.add(page, job=job, honor_labels=honoured, **labels)

    everything = frozenset(CLASSIC)
    node(dcgm(*pair("classic-0"), Card(node="node-of-classic-0", index=2)))
    node(dcgm(*pair("renamed-host-0"), host="hostname"), honoured=True)
    node(dcgm(*pair("new-0"), host="hostname", uuid="uuid", new=True))
    node(agent(*pair("agent-0")), "agent")
    # The same GPUs twice: by two versions of the exporter side by side, and by the exporter and the agent.
    node(dcgm(*pair("twice-0")))
    node(dcgm(*pair("twice-0"), host="hostname"))
    node(dcgm(*(replace(card, only=frozenset(DEFAULT)) for card in pair("beside-0"))))
    node(agent(*pair("beside-0", Power="999", GPUUtilization="0.01")), "agent")
    # MIG: two instances of one board in one pod, a third one in another.
    node(
        dcgm(
            instance_of("1", "mig-0"),
            replace(instance_of("2", "mig-0"), shows=COOLER),
            instance_of("3", "mig-1"),
        )
    )
    own = replace(instance_of("1", "mig-agent-0"), only=everything - OF_A_BOARD)
    node(agent(own, replace(own, pod="", instance="", only=frozenset(OF_A_BOARD))), "agent")
    # GPUs of one pod that are not busy alike.
    waits = BUSY | {Signal.GR_ENGINE_ACTIVE: 0.4, Signal.GPU_UTILIZATION: 0.5}
    node(dcgm(*trio("apart-0", waits)))
    node(dcgm(*trio("apart-1", waits), host="hostname", uuid="uuid", new=True))
    node(agent(*trio("apart-2", waits)), "agent")
    node(dcgm(*(replace(card, only=everything - {Signal.GR_ENGINE_ACTIVE}) for card in trio("apart-3", waits))))
    node(dcgm(*trio("alike-0", BUSY | {Signal.GPU_UTILIZATION: 0.2})))  # by the better counter
    whole = replace(instance_of("1", "apart-mig-0"), node="node-of-apart-mig-0")
    node(dcgm(whole, replace(whole, instance="2", shows=waits)))
    # Time-slicing, with replicas told apart: each pod has the device's figures, but for its processes' own memory.
    node(
        dcgm(
            Card(pod="slice-0", replica="0", node="node-ts", shows=BUSY | {Signal.FRAMEBUFFER_USED: 8 * GIB}),
            Card(pod="slice-1", replica="1", node="node-ts"),
            Card(pod="slice-1", replica="2", node="node-ts"),
            Card(node="node-ts"),  # the device, beside its pods
            Card(pod="alone-0", node="node-ts", index=1),
            Card(pod="stranger-0", node="node-ts", index=2, replica="0"),  # whoever is beside it has no policy
        )
    )
    node(dcgm(Card(pod="claim-0", node="node-dra"), Card(pod="claim-1", node="node-dra")))  # one claim of two pods
    node(agent(Card(pod="sharing-0", node="node-mps", shared=True)), "agent")
    # Bad input.
    half_blank = {
        Signal.FRAMEBUFFER_USED: BLANK_64,
        Signal.POWER: BLANK_FLOAT,
        Signal.SM_CLOCK: BLANK_32,
        Signal.DRAM_ACTIVE: "NaN",
        Signal.TENSOR_ACTIVE: BLANK_FLOAT,
        Signal.POWER_THROTTLED: BLANK_64,
        Signal.PCIE_SENT: BLANK_FLOAT,
    }
    node(dcgm(Card(pod="blank-0", node="node-b"), Card(pod="blank-0", node="node-b", index=1, raw=half_blank)))
    node(dcgm(Card(pod="blank-1", node="node-c", raw=half_blank)))
    impossible = {Signal.DRAM_ACTIVE: "1.7", Signal.SM_ACTIVE: "-0.2"}
    node(dcgm(Card(pod="odd-0", node="node-d", raw=impossible)))
    node(dcgm(Card(pod="odd-1", node="node-e", raw=impossible)))
    node(agent(Card(pod="odd-1", node="node-e")), "agent")
    percent = {Signal.GPU_UTILIZATION: "87", Signal.DRAM_ACTIVE: "0.3"}
    node(dcgm(Card(pod="alias-0", node="node-f", raw=percent), new=True))
    node(with_timestamp(dcgm(Card(pod="stuck-0", node="node-g")), 200), "stuck")
    node(with_timestamp(dcgm(Card(pod="stuck-1", node="node-h")), 200), "stuck-too")
    node(agent(Card(pod="stuck-1", node="node-h", shows=COOLER)), "agent")
    node(dcgm(Card(pod="motley-0", node="node-i"), Card(pod="motley-0", node="node-i", index=1, model="NVIDIA L4")))
    for job in ("kubelet", "kubelet-again"):
        exporters.add(
            added(cadvisor("classic-0"), cadvisor("new-0", limited=False), cadvisor("classic-0", namespace="other")),
            job=job,
            node="node-1",
            metrics_path="/metrics/cadvisor",
        )
    engines = [{"engine": "0"}, {"engine": "1"}]
    exporters.add(mfu("vllm", *engines), namespace="serving", pod="classic-0", endpoint="pods")
    ranks = [{"engine_type": "unified", "tp_rank": str(rank)} for rank in range(4)]
    exporters.add(mfu("sglang", *ranks, flops=2.2e15), namespace="serving", pod="new-0", endpoint="pods")
    run_dir = tmp_path_factory.mktemp("prometheus")
    with Prometheus.start(run_dir, scrape_configs=list(exporters.jobs.values())) as found:
        time.sleep(SLOW_WINDOW_S + 3)  # a whole window of rates
        yield found


@pytest.fixture
def collector(prometheus: Prometheus) -> Iterator[Collector]:
    server = PrometheusServer(name="default", url=prometheus.url)
    found = Collector(CollectorSettings(servers=(server,), rate_window_s=RATE_WINDOW_S))
    yield found
    found.close()


def a_want(*pods: str, signals: Sequence[Signal] = tuple(gpu.SOURCES), namespace: str = "serving") -> Want:
    return Want(
        key="any",
        namespace=namespace,
        workload="any",
        kind="Deployment",
        pods=pods,
        runtime="Generic",
        signals=frozenset(signals),
    )


async def seen(collector: Collector, *pods: str, signals: Sequence[Signal] = tuple(gpu.SOURCES)) -> Observations:
    return (await collector.collect([a_want(*pods, signals=signals)], time.monotonic()))["any"]


def of_pod(found: Observations, pod: str) -> dict[Signal, float]:
    return {signal: readings[pod].value for signal, readings in found.by_pod.items() if pod in readings}


def close(expected: Mapping[Signal, float]) -> object:
    return pytest.approx(expected, rel=0.04, abs=1e-6)


def test_the_pages_have_every_signal() -> None:
    asked = set(gpu.SOURCES) - {Signal.GPU_COUNT}
    assert set(CLASSIC) == set(NEW) == set(AGENT) == set(BUSY) == asked
    ours = {f"bandkeeper_gpu_{name}" for name, _ in AGENT.values()}
    written_names = {*(name for name, _ in (*CLASSIC.values(), *NEW.values())), *ours}
    read = {
        metric.partition("{")[0]
        for signal in asked
        for series in gpu.SOURCES[signal].any_of
        for metric in series.metrics
    }
    assert read == written_names


@scrapes_on_time
async def test_every_generation_gives_the_same_signals(collector: Collector) -> None:
    found = await seen(collector, *GENERATIONS)
    for pod in GENERATIONS:
        assert of_pod(found, pod) == close({**OF_BOTH, Signal.GPU_COUNT: 2}), pod
    for pod, source in GENERATIONS.items():
        assert found.gpus[pod] == GPUs(model=H100, count=2, source=source)
    assert found.gaps == ()
    assert all(0 <= one.age_s < 5 for readings in found.by_pod.values() for one in readings.values())


@scrapes_on_time
async def test_two_versions_of_an_exporter_on_one_node_count_once(collector: Collector) -> None:
    found = await seen(collector, "twice-0")
    assert of_pod(found, "twice-0") == close({**OF_BOTH, Signal.GPU_COUNT: 2})
    assert found.gpus["twice-0"] == GPUs(model=H100, count=2, source="dcgm-exporter")


@scrapes_on_time
async def test_the_agent_fills_what_the_exporter_lacks_and_no_more(collector: Collector) -> None:
    found = await seen(collector, "beside-0")
    assert of_pod(found, "beside-0") == close({**OF_BOTH, Signal.GPU_COUNT: 2})  # not the agent's 999 W and 1 %
    assert found.gpus["beside-0"] == GPUs(model=H100, count=2, source="dcgm-exporter, bandkeeper agent")


async def test_mig_instances_have_their_own_counters_and_nothing_of_the_board(collector: Collector) -> None:
    found = await seen(collector, "mig-0", "mig-1", "mig-agent-0")
    two = of_pod(found, "mig-0")
    assert two[Signal.DRAM_ACTIVE] == pytest.approx(0.5)
    assert two[Signal.FRAMEBUFFER_USED] == pytest.approx(70 * GIB)
    assert of_pod(found, "mig-1")[Signal.DRAM_ACTIVE] == pytest.approx(0.6)
    assert not OF_A_BOARD & {*two, *of_pod(found, "mig-agent-0")}
    assert gap(found, Signal.GPU_UTILIZATION).reason is GapReason.ABSENT
    assert found.gpus == {
        "mig-0": GPUs(model=MIG_MODEL, count=2, mig=True, source="dcgm-exporter"),
        "mig-1": GPUs(model=MIG_MODEL, count=1, mig=True, source="dcgm-exporter"),
        "mig-agent-0": GPUs(model=MIG_MODEL, count=1, mig=True, source="bandkeeper agent"),
    }


async def test_gpus_of_a_pod_are_told_apart_where_they_are_not_busy_alike(collector: Collector) -> None:
    found = await seen(collector, *(f"apart-{number}" for number in range(4)), "alike-0", "apart-mig-0")
    by_gpu = {pod: dict(gpus.busy_by_gpu) for pod, gpus in found.gpus.items()}
    engine = {"GPU 0": 0.9, "GPU 1": 0.9, "GPU 2": 0.4}
    kernels = {"GPU 0": 0.97, "GPU 1": 0.97, "GPU 2": 0.5}
    assert by_gpu == {
        "apart-0": engine,
        "apart-1": engine,
        "apart-2": engine,
        "apart-3": pytest.approx(kernels),  # where nothing better is exported
        "alike-0": {},
        "apart-mig-0": {"GPU 0, instance 1": 0.9, "GPU 0, instance 2": 0.4},
    }
    assert values(found, Signal.GR_ENGINE_ACTIVE)["apart-0"] == pytest.approx((0.9 + 0.9 + 0.4) / 3)
    assert {pod: gpus.count for pod, gpus in found.gpus.items()} == dict.fromkeys(by_gpu, 3) | {"apart-mig-0": 2}


async def test_a_time_sliced_gpu_is_said_to_be_shared_and_counts_once(collector: Collector) -> None:
    found = await seen(collector, "slice-0", "slice-1", "stranger-0", "alone-0", "claim-0", "claim-1", "sharing-0")
    assert values(found, Signal.POWER) == pytest.approx(dict.fromkeys(found.gpus, 350.5))
    assert values(found, Signal.FRAMEBUFFER_USED)["slice-0"] == pytest.approx(8 * GIB)
    assert values(found, Signal.FRAMEBUFFER_USED)["slice-1"] == pytest.approx(60 * GIB)
    assert {pod for pod, gpus in found.gpus.items() if not gpus.shared} == {"alone-0"}
    assert {gpus.count for gpus in found.gpus.values()} == {1}


@scrapes_on_time
async def test_what_the_exporter_does_not_know_is_no_number(collector: Collector) -> None:
    found = await seen(collector, "blank-0", "blank-1")
    lost = {
        Signal.FRAMEBUFFER_USED,
        Signal.POWER,
        Signal.SM_CLOCK,
        Signal.DRAM_ACTIVE,
        Signal.TENSOR_ACTIVE,
        Signal.POWER_THROTTLED,
        Signal.PCIE_SENT,
    }
    assert {signal: value for signal, value in of_pod(found, "blank-0").items() if signal in lost} == close(
        {signal: BUSY[signal] for signal in lost}  # of the other GPU alone
    )
    assert not lost & of_pod(found, "blank-1").keys()
    assert found.gpus["blank-0"].count == 2
    assert {one.signal for one in found.gaps} == {Signal.POWER, Signal.DRAM_ACTIVE, Signal.TENSOR_ACTIVE}
    assert {one.reason for one in found.gaps} == {GapReason.PARTIAL}


async def test_impossible_values_are_not_used_and_another_exporter_is(collector: Collector) -> None:
    found = await seen(collector, "odd-0", "odd-1")
    assert values(found, Signal.DRAM_ACTIVE) == {"odd-1": 0.6}
    assert values(found, Signal.SM_ACTIVE) == {"odd-1": 0.7}
    assert gap(found, Signal.DRAM_ACTIVE).reason is GapReason.INVALID
    assert "1.7, but DRAMActive is a ratio" in gap(found, Signal.DRAM_ACTIVE).detail
    assert "odd-1" not in gap(found, Signal.DRAM_ACTIVE).detail
    assert "negative" in gap(found, Signal.SM_ACTIVE).detail


async def test_a_percentage_under_a_ratios_name_is_said(collector: Collector) -> None:
    found = await seen(collector, "alias-0")  # DCGM 4.6 has this name for the percentage
    assert Signal.GPU_UTILIZATION not in found.by_pod
    assert "divide a percentage by 100" in gap(found, Signal.GPU_UTILIZATION).detail
    assert values(found, Signal.DRAM_ACTIVE) == {"alias-0": 0.3}


async def test_a_stuck_exporter_gives_way_to_a_fresh_one(collector: Collector) -> None:
    found = await seen(collector, "stuck-0", "stuck-1")
    assert values(found, Signal.POWER) == {"stuck-1": 150}
    assert values(found, Signal.GPU_TEMPERATURE) == {"stuck-1": 43}
    assert found.gpus == {"stuck-1": GPUs(model=H100, count=1, source="bandkeeper agent")}
    for signal in (Signal.POWER, Signal.GPU_TEMPERATURE):
        assert gap(found, signal).reason is GapReason.STALE
        assert gap(found, signal).pods == ("stuck-0",)


async def test_gpus_of_several_kinds_have_no_one_model(collector: Collector) -> None:
    found = await seen(collector, "motley-0")
    assert found.gpus == {"motley-0": GPUs(model=None, count=2, source="dcgm-exporter")}


async def test_no_exporter_at_all(collector: Collector) -> None:
    found = await seen(collector, "nowhere-0")
    assert (found.by_pod, found.gpus) == ({}, {})
    told = {one.signal for one in found.gaps}
    assert told == {signal for signal, source in gpu.SOURCES.items() if not source.aside}
    assert "node agent" in gap(found, Signal.DRAM_ACTIVE).detail


@scrapes_on_time
async def test_containers_of_a_pod(collector: Collector) -> None:
    found = await seen(collector, "classic-0", "new-0", signals=tuple(containers.SOURCES))
    alike = {
        Signal.CPU_USED: 4.0,
        Signal.NETWORK_RECEIVED: 1e6,
        Signal.NETWORK_SENT: 2e6,
        Signal.DISK_READ: 8e6,
        Signal.DISK_WRITTEN: 8e5,
    }
    assert of_pod(found, "classic-0") == close({**alike, Signal.CPU_THROTTLED: 0.2})
    assert of_pod(found, "new-0") == close(alike)  # without a CPU limit nothing is throttled, and nothing says so
    assert found.gaps == ()
    assert found.gpus == {}


@scrapes_on_time
async def test_the_work_that_servers_say_they_do(collector: Collector) -> None:
    found = await seen(collector, "classic-0", "new-0", signals=tuple(work.SOURCES))
    moved = {Signal.MODEL_READ_BYTES: 2e12, Signal.MODEL_WRITTEN_BYTES: 1e11}
    assert of_pod(found, "classic-0") == close({**moved, Signal.MODEL_FLOPS: 4e14})  # per GPU: the mean of the engines
    assert of_pod(found, "new-0") == close({**moved, Signal.MODEL_FLOPS: 2.2e15})
    assert found.gpus == {}


async def test_the_explanations_cost_a_question_a_minute(collector: Collector) -> None:
    signals = set(PRESETS["VLLM"].sources) - LATENCY_SIGNALS
    counted = []
    for now_s in (0.0, 15.0, 30.0, 45.0, ASIDE_EVERY_S, 60.0):
        await collector.collect([a_want("classic-0", signals=tuple(signals))], now_s)
        counted.append(collector.last.queries)
    aside = sum(PRESETS["Generic"].sources[signal].aside for signal in PRESETS["Generic"].sources)
    assert aside == 27
    gpus, clocks = 6 + 1, 3
    assert [counted[0], counted[1], counted[2], counted[3]] == [gpus + aside + clocks, 0, gpus, 0]
    assert counted[4:] == [gpus + aside + clocks, 0]
