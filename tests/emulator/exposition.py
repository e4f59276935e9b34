"""Prometheus text of the emulated servers (vLLM 0.33's names, Triton's names) and of dcgm-exporter (classic names)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .config import Dcgm, DcgmField, Host
from .fleet import GpuSample, PodServer, WorkloadFleet
from .histogram import Histogram
from .servers import ContinuousBatchingServer, DynamicBatchingServer

SUMMARY_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
# Gauges: name and help text, in the order of the exporter's default list. SM_ACTIVE is commented out there.
DCGM_HELP: dict[DcgmField, str] = {
    "DCGM_FI_DEV_POWER_USAGE": "Power draw (in W).",
    "DCGM_FI_DEV_GPU_UTIL": "GPU utilization (in %).",
    "DCGM_FI_DEV_FB_FREE": "Framebuffer memory free (in MiB).",
    "DCGM_FI_DEV_FB_USED": "Framebuffer memory used (in MiB).",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": "Ratio of time the graphics engine is active.",
    "DCGM_FI_PROF_SM_ACTIVE": "The ratio of cycles an SM has at least 1 warp assigned.",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "Ratio of cycles the tensor (HMMA) pipe is active.",
    "DCGM_FI_PROF_DRAM_ACTIVE": "Ratio of cycles the device memory interface is active sending or receiving data.",
    "DCGM_FI_PROF_PCIE_TX_BYTES": "The rate of data transmitted over the PCIe bus, in bytes per second.",
    "DCGM_FI_PROF_PCIE_RX_BYTES": "The rate of data received over the PCIe bus, in bytes per second.",
}


# Names with the label that is theirs alone, and the cgroups that they are shown for.
CADVISOR: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "container_cpu_usage_seconds_total": ({"cpu": "total"}, ("pod", "container")),
    "container_cpu_cfs_periods_total": ({}, ("pod", "container")),
    "container_cpu_cfs_throttled_periods_total": ({}, ("pod", "container")),
    "container_network_receive_bytes_total": ({"interface": "eth0"}, ("pod",)),
    "container_network_transmit_bytes_total": ({"interface": "eth0"}, ("pod",)),
    "container_fs_reads_bytes_total": ({"device": "/dev/nvme0n1"}, ("container",)),
    "container_fs_writes_bytes_total": ({"device": "/dev/nvme0n1"}, ("container",)),
}


class _Text:
    """Collects families of samples; `labels` stand on each of them."""

    def __init__(self, **labels: str) -> None:
        self._labels = format_labels(labels)
        self._lines: list[str] = []

    def family(self, name: str, kind: str, value: float, suffix: str = "") -> None:
        """A family of one sample, whose name may have a suffix (`_total`)."""
        self._lines += (f"# HELP {name}{suffix} {name}", f"# TYPE {name}{suffix} {kind}")
        self._lines.append(f"{name}{suffix}{{{self._labels}}} {value}")

    def labelled(self, name: str, kind: str, label: str, values: Mapping[str, float]) -> None:
        """A family with one more label."""
        self._lines += (f"# HELP {name} {name}", f"# TYPE {name} {kind}")
        self._lines += [f'{name}{{{label}="{key}",{self._labels}}} {value}' for key, value in values.items()]

    def histogram(self, name: str, histogram: Histogram) -> None:
        labels = self._labels
        self._lines += (f"# HELP {name} {name}", f"# TYPE {name} histogram")
        self._lines += [
            f'{name}_bucket{{{labels},le="{bound}"}} {seen}'
            for bound, seen in zip(histogram.buckets, histogram.cumulative(), strict=True)
        ]
        self._lines += (
            f'{name}_bucket{{{labels},le="+Inf"}} {histogram.count}',
            f"{name}_sum{{{labels}}} {histogram.sum}",
            f"{name}_count{{{labels}}} {histogram.count}",
        )

    def summary(self, name: str, quantiles: Mapping[float, float | None], total: float, count: int) -> None:
        labels = self._labels
        self._lines += (f"# HELP {name} {name}", f"# TYPE {name} summary")
        for quantile, value in quantiles.items():
            self._lines.append(f'{name}{{{labels},quantile="{quantile}"}} {"NaN" if value is None else value}')
        self._lines += (f"{name}_count{{{labels}}} {count}", f"{name}_sum{{{labels}}} {total}")

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def format_labels(labels: Mapping[str, str]) -> str:
    escaped = {
        key: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for key, value in labels.items()
    }
    return ",".join(f'{key}="{value}"' for key, value in escaped.items())


def pod_text(workload: WorkloadFleet, record: PodServer, now_s: float) -> str:
    """What the pod's server answers on /metrics at `now_s`."""
    if isinstance(record.server, ContinuousBatchingServer):
        return _vllm_text(workload.config.model_name, record.server)
    assert isinstance(record.server, DynamicBatchingServer)
    return _triton_text(workload.config.model_name, record.server, now_s)


def _vllm_text(model: str, server: ContinuousBatchingServer) -> str:
    stats = server.stats
    text = _Text(engine="0", model_name=model)
    text.family("vllm:num_requests_running", "gauge", server.running_count)
    text.family("vllm:num_requests_waiting", "gauge", server.waiting_count)
    text.family("vllm:kv_cache_usage_perc", "gauge", server.kv_usage)
    text.family("vllm:num_preemptions", "counter", stats.preemptions, "_total")
    text.family("vllm:prompt_tokens", "counter", stats.prompt_tokens, "_total")
    text.family("vllm:prompt_tokens_cached", "counter", 0, "_total")
    text.family("vllm:generation_tokens", "counter", stats.generation_tokens, "_total")
    text.labelled("vllm:request_success_total", "counter", "finished_reason", stats.finished)
    if server.spec.max_queue is not None:
        rejected = {"max_num_queued_reqs": stats.rejected}
        text.labelled("vllm:admission_rejections_total", "counter", "reason", rejected)
    text.histogram("vllm:iteration_tokens_total", stats.iteration_tokens)
    text.histogram("vllm:time_to_first_token_seconds", stats.ttft)
    text.histogram("vllm:inter_token_latency_seconds", stats.itl)
    text.histogram("vllm:e2e_request_latency_seconds", stats.e2e)
    text.histogram("vllm:request_queue_time_seconds", stats.queue)
    return str(text)


def _triton_text(model: str, server: DynamicBatchingServer, now_s: float) -> str:
    stats = server.stats
    failures = {
        "REJECTED": stats.rejected,
        "CANCELED": stats.finished["abort"],
        "BACKEND": 0,
        "OTHER": stats.finished["error"],
    }
    durations_s = {
        "request": stats.e2e.sum,
        "queue": stats.queue.sum,
        "compute_input": stats.input_s,
        "compute_infer": stats.infer_s,
        "compute_output": stats.output_s,
    }
    text = _Text(model=model, version="1")
    text.family("nv_inference_request_success", "counter", stats.succeeded)
    text.labelled("nv_inference_request_failure", "counter", "reason", failures)
    text.family("nv_inference_count", "counter", stats.succeeded)
    text.family("nv_inference_exec_count", "counter", stats.executions)
    for name, seconds in durations_s.items():
        text.family(f"nv_inference_{name}_duration_us", "counter", round(seconds * 1e6))
    text.family("nv_inference_pending_request_count", "gauge", server.waiting_count)
    if server.recent is not None:
        recent = server.recent
        quantiles = {q: _microseconds(recent.quantile(q, now_s)) for q in SUMMARY_QUANTILES}
        text.summary("nv_inference_request_summary_us", quantiles, round(recent.sum * 1e6), recent.count)
    return str(text)


def _microseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


def dcgm_text(samples: Iterable[GpuSample], config: Dcgm) -> str:
    """What the exporter of one node answers: its last collection; a GPU that a pod has bears the pod's labels."""
    gpus = [(_gpu_labels(sample, config), _gpu_values(sample)) for sample in samples]
    lines = []
    for name, text in DCGM_HELP.items():
        if name in config.absent or (name == "DCGM_FI_PROF_SM_ACTIVE" and not config.sm_active):
            continue
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
        lines += [f"{name}{{{labels}}} {values[name]}" for labels, values in gpus]
    return "\n".join(lines) + "\n"


def cadvisor_text(records: Iterable[tuple[Host, PodServer]], now_s: float) -> str:
    """What the kubelet of one node answers on /metrics/cadvisor about its pods' servers since they came up.

    As the real one it has the pod's own cgroup (no container) beside the container's, and the network only there.
    """
    families: dict[str, list[str]] = {name: [] for name in CADVISOR}
    for host, record in records:
        pod, busy_s = record.pod, record.server.activity(now_s).busy_s
        periods = 10.0 * busy_s
        values = {
            "container_cpu_usage_seconds_total": host.cpu_cores * busy_s,
            "container_cpu_cfs_periods_total": periods,
            "container_cpu_cfs_throttled_periods_total": host.cpu_throttled * periods,
            "container_network_receive_bytes_total": host.network_bytes_per_s * busy_s,
            "container_network_transmit_bytes_total": 0.0,
            "container_fs_reads_bytes_total": host.disk_bytes_per_s * busy_s,
            "container_fs_writes_bytes_total": 0.0,
        }
        cgroup = f"/kubepods/pod{pod.uid}"
        of_pod = {"container": "", "id": cgroup, "image": "", "name": "", "namespace": pod.namespace, "pod": pod.name}
        of_container = {**of_pod, "container": pod.container, "id": f"{cgroup}/server", "image": "x", "name": "server"}
        for name, value in values.items():
            more, places = CADVISOR[name]
            families[name] += [
                f"{name}{{{format_labels({**(of_pod if place == 'pod' else of_container), **more})}}} {value}"
                for place in places
            ]
    lines = []
    for name, series in families.items():
        lines += [f"# HELP {name} {name}", f"# TYPE {name} counter", *series]
    return "\n".join(lines) + "\n"


def _gpu_labels(sample: GpuSample, config: Dcgm) -> str:
    labels = {
        "gpu": str(sample.index),
        "UUID": sample.uuid,
        "pci_bus_id": f"00000000:{0x10 + sample.index:02X}:00.0",
        "device": f"nvidia{sample.index}",
        "modelName": config.model_name,
        "Hostname": sample.node,
    }
    if sample.pod is not None:
        labels |= {"container": sample.pod.container, "namespace": sample.pod.namespace, "pod": sample.pod.name}
    return format_labels(labels)


def _gpu_values(sample: GpuSample) -> dict[DcgmField, float]:
    return {
        "DCGM_FI_DEV_POWER_USAGE": round(sample.power_w, 3),
        "DCGM_FI_DEV_GPU_UTIL": round(100 * sample.busy),
        "DCGM_FI_DEV_FB_FREE": sample.free_mib,
        "DCGM_FI_DEV_FB_USED": sample.used_mib,
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE": round(sample.busy, 6),
        "DCGM_FI_PROF_SM_ACTIVE": round(0.85 * sample.busy, 6),
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": round(sample.tensor, 6),
        "DCGM_FI_PROF_DRAM_ACTIVE": round(sample.dram, 6),
        # A few bytes a token or sample each way over a trickle that never stops.
        "DCGM_FI_PROF_PCIE_TX_BYTES": round(50_000 + 4_000 * sample.tokens_per_s),
        "DCGM_FI_PROF_PCIE_RX_BYTES": round(50_000 + 8_000 * sample.tokens_per_s),
    }
