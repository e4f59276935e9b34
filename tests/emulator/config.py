"""The emulator's configuration file, checked: each workload's servers and load, and the GPUs' exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from . import presets
from .histogram import ITL_BUCKETS_S, REQUEST_BUCKETS_S, TTFT_BUCKETS_S
from .load import Load, Tokens

CAP_ANNOTATION = "bandkeeper.dev/batch-cap"

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Edges = Annotated[tuple[Positive, ...], Field(min_length=1)]


class ConfigError(ValueError):
    """The configuration is wrong; the message has one line per mistake with the path of the value."""


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Server(_Checked):
    """What both kinds of server share."""

    capacity: AtLeastOne
    max_queue: AtLeastOne | None = None
    cap_delay_s: NotNegative = 30.0
    jitter: Annotated[float, Field(ge=0, le=0.3)] = 0.0


def _with_preset(given: Any, known: dict[str, Any]) -> Any:
    if not isinstance(given, dict) or "preset" not in given:
        return given
    name = given["preset"]
    if name not in known:
        raise ValueError(f"unknown preset {name!r}; write one of: {', '.join(known)}")
    return {**known[name], **{key: value for key, value in given.items() if key != "preset"}}


class ContinuousServer(_Server):
    """A continuous-batching server. A step lasts

    [alpha + beta x decoding requests + kappa x their context / 1000] + [gamma + delta x prefill tokens] ms,
    each bracket only where the step decodes or prefills.
    """

    alpha_ms: Positive
    beta_ms: NotNegative
    kappa_ms_per_ktoken: NotNegative = 0.0
    gamma_ms: NotNegative
    delta_ms_per_token: NotNegative
    kv_tokens: Annotated[int, Field(ge=16)]
    prefill_budget: AtLeastOne = 8192
    # Fractions of the peak while prefilling or decoding; see README, "GPU counters".
    prefill_tensor: Annotated[float, Field(ge=0, le=1)] = 0.41
    prefill_dram: Annotated[float, Field(ge=0, le=1)] = 0.20
    decode_dram: Annotated[float, Field(ge=0, le=1)] = 0.71

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return _with_preset(given, presets.CONTINUOUS)


class DynamicServer(_Server):
    """A dynamic-batching server, one instance: a batch takes `time_scale` x `batch_ms`, linear between its entries."""

    batch_ms: dict[int, Positive]
    max_delay_ms: NotNegative = 1.0
    time_scale: Positive = 1.0
    summaries: bool = False  # quantiles of the last 60 s, as with --metrics-config summary_latencies=true
    peak_tensor: Annotated[float, Field(ge=0, le=1)] = 0.55
    busy_dram: Annotated[float, Field(ge=0, le=1)] = 0.45

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        return _with_preset(given, presets.DYNAMIC)

    @model_validator(mode="after")
    def _table_covers_the_batches(self) -> DynamicServer:
        if 1 not in self.batch_ms or max(self.batch_ms) < self.capacity:
            raise ValueError(f"batch_ms must have an entry for 1 and one for capacity ({self.capacity}) or more")
        return self


class Host(_Checked):
    """What a pod uses of its node while its server is busy; cAdvisor's series show it."""

    cpu_cores: NotNegative = 0.0
    cpu_throttled: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the periods in which its CPU limit holds it
    network_bytes_per_s: NotNegative = 0.0  # received
    disk_bytes_per_s: NotNegative = 0.0  # read


class Buckets(_Checked):
    """Upper bounds of the exposed histograms, seconds; put the SLO thresholds among them."""

    ttft_s: Edges = TTFT_BUCKETS_S
    itl_s: Edges = ITL_BUCKETS_S
    request_s: Edges = REQUEST_BUCKETS_S


class _Workload(_Checked):
    name: Annotated[str, Field(min_length=1)]
    namespace: Annotated[str, Field(min_length=1)]
    selector: Annotated[dict[str, str], Field(min_length=1)]
    load: Load
    tokens: Tokens = Tokens()
    model: str | None = None
    container: str | None = None
    cap_annotation: str = CAP_ANNOTATION
    capacity_env: str = "MAX_NUM_SEQS"
    capacity_arg: str = "--max-num-seqs"
    buckets: Buckets = Buckets()
    host: Host | None = None
    # What all replicas share (storage, a database) feeds so many of them; more of them wait for it, and spin.
    fed_replicas: Positive | None = None

    @field_validator("selector", mode="before")
    @classmethod
    def _match_labels(cls, given: Any) -> Any:
        """Takes `{app: chat}` and `{matchLabels: {app: chat}}`."""
        if isinstance(given, dict) and set(given) == {"matchLabels"}:
            return given["matchLabels"]
        return given

    @property
    def model_name(self) -> str:
        return self.model or self.name

    @property
    def label_selector(self) -> str:
        return ",".join(f"{key}={value}" for key, value in sorted(self.selector.items()))


class ContinuousWorkload(_Workload):
    kind: Literal["continuous"]
    server: ContinuousServer


class DynamicWorkload(_Workload):
    kind: Literal["dynamic"]
    server: DynamicServer


Workload = Annotated[ContinuousWorkload | DynamicWorkload, Field(discriminator="kind")]


DcgmField = Literal[
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    "DCGM_FI_PROF_SM_ACTIVE",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    "DCGM_FI_PROF_DRAM_ACTIVE",
    "DCGM_FI_PROF_PCIE_TX_BYTES",
    "DCGM_FI_PROF_PCIE_RX_BYTES",
]


class Dcgm(_Checked):
    """The GPUs and their exporter. Names and units are the classic ones (dcgm-exporter up to 4.8)."""

    period_s: Positive = 30.0
    gpus_per_node: AtLeastOne = 8
    model_name: str = "NVIDIA H100 80GB HBM3"
    memory_mib: AtLeastOne = 81_559
    idle_w: Positive = 70.0
    limit_w: Positive = 700.0
    sm_active: bool = False
    absent: frozenset[DcgmField] = frozenset()


class EmulatorConfig(_Checked):
    workloads: tuple[Workload, ...]
    dcgm: Dcgm = Dcgm()
    tick_s: Annotated[float, Field(ge=0.01, le=1)] = 0.075

    @model_validator(mode="after")
    def _workloads_are_named_apart(self) -> EmulatorConfig:
        if not self.workloads:
            raise ValueError("workloads must have at least one entry")
        names = [workload.name for workload in self.workloads]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"workload names must differ, but these occur more than once: {', '.join(twice)}")
        return self


def parse_config(document: object) -> EmulatorConfig:
    """Checks a parsed document. Raises ConfigError."""
    try:
        return EmulatorConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def load_config(path: Path) -> EmulatorConfig:
    """Reads and checks a YAML file. Raises ConfigError and OSError."""
    try:
        document = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    return parse_config(document)


def explain(error: ValidationError) -> str:
    """One line per mistake: where, what is wrong, and what was given if it is short."""
    lines = []
    for mistake in error.errors(include_url=False):
        where = ".".join(str(part) for part in mistake["loc"]) or "the document"
        given = repr(mistake["input"])
        shown = f" (given: {given})" if len(given) <= 60 else ""
        lines.append(f"{where}: {mistake['msg'].removeprefix('Value error, ')}{shown}")
    return "\n".join(lines)
