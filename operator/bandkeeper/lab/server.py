"""A model server on one replica's GPUs as the simulator knows it, read from a file or a preset; units in the names."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

PRESETS = Path(__file__).parent / "presets"

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class ServerError(ValueError):
    """The server cannot be used; one line per mistake, with the path of the value."""


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ColdStart(_Checked):
    """From the order of a pod to its first request: log-normal around `median_s`.

    `spread` is the standard deviation of the logarithm; 0 makes every start alike.
    """

    median_s: NotNegative = 90.0
    spread: Annotated[float, Field(ge=0, le=2)] = 0.1


class _Server(_Checked):
    """What every server has.

    Attributes
    ----------
    gpus
        GPUs of one replica; cost is counted in GPU-hours.
    batch_min, batch_max
        Range of the batch cap; `batch_max` is the capacity that the server boots with.
    max_queue
        Requests that a replica lets wait before it refuses more; None: no bound.
    cap_delay_s
        From the order of a batch cap to its effect in a ready pod.
    drain_s
        Grace of a pod that is taken away: what is unfinished after it fails.
    nodes_gpus
        GPUs that the cluster has; pods beyond them stay unschedulable. None: enough.
    crashes_per_hour
        Crashes of one ready replica; the pod restarts with a new cold start and its requests fail.
    watts
        Most that one GPU draws; left out: the board power of a GPU that is known by its name.
    slow_start_s
        Time in which the router raises a new pod's share from nothing to full; 0: at once.
    """

    model: str
    gpu: str
    source: str = Field(description="where the figures come from")
    gpus: AtLeastOne = 1
    batch_min: AtLeastOne = 1
    batch_max: AtLeastOne
    max_queue: AtLeastOne | None = None
    cap_delay_s: NotNegative = 5.0
    drain_s: NotNegative = 60.0
    cold_start: ColdStart = ColdStart()
    nodes_gpus: AtLeastOne | None = None
    crashes_per_hour: NotNegative = 0.0
    slow_start_s: NotNegative = 0.0
    watts: Positive | None = None

    @model_validator(mode="after")
    def _ordered(self) -> _Server:
        if self.batch_min > self.batch_max:
            raise ValueError(f"batch_min ({self.batch_min}) must not be above batch_max ({self.batch_max})")
        return self


class ContinuousServer(_Server):
    """A continuous-batching server (vLLM, SGLang, TensorRT-LLM). A step lasts

    [alpha + beta x decoding requests + kappa x their context / 1000] + [gamma + delta x prefill tokens] ms,
    each bracket only where the step decodes or prefills; prefill goes first, at most `prefill_chunk_tokens` a step.

    `prefill_tensor`, `prefill_dram`, `decode_dram` are shares of the GPU's peaks while it does that kind of work.
    """

    kind: Literal["continuous"] = "continuous"
    alpha_ms: Positive
    beta_ms: NotNegative
    gamma_ms: NotNegative = 0.0
    delta_ms_per_token: NotNegative
    kappa_ms_per_ktoken: NotNegative = 0.0
    kv_tokens: Annotated[int, Field(ge=16)]
    prefill_chunk_tokens: AtLeastOne = 8192
    prefill_tensor: Share = 0.41
    prefill_dram: Share = 0.20
    decode_dram: Share = 0.71

    def step_s(self, batch: float, context_tokens: float = 0.0, prefill_tokens: float = 0.0) -> float:
        """Seconds of one step with `batch` requests decoding, whose contexts add up to `context_tokens`."""
        decode = self.alpha_ms + self.beta_ms * batch + self.kappa_ms_per_ktoken * context_tokens / 1000.0
        prefill = self.gamma_ms + self.delta_ms_per_token * prefill_tokens
        return ((decode if batch else 0.0) + (prefill if prefill_tokens else 0.0)) / 1000.0

    def sustainable_per_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Requests per second that one replica carries at its best batch, for requests of these mean lengths."""
        batch = self.best_batch(prompt_tokens, output_tokens)
        each_context = prompt_tokens + output_tokens / 2
        prefill_s = (self.gamma_ms + self.delta_ms_per_token * prompt_tokens) / 1000.0
        decode_s = max(0.0, output_tokens - 1) * self.step_s(batch, batch * each_context) / batch
        return 1.0 / max(1e-9, prefill_s + decode_s)

    def best_batch(self, prompt_tokens: float, output_tokens: float) -> float:
        """The largest batch that capacity and KV memory permit: throughput grows with it."""
        return max(1.0, min(self.batch_max, 0.9 * self.kv_tokens / max(1.0, prompt_tokens + output_tokens / 2)))


class DynamicServer(_Server):
    """A dynamic-batching server (Triton): a batch of b takes `batch_ms[b]`, linear between the table's sizes.

    A batch starts when it is full or its oldest request waited `max_delay_ms`. Throughput may have an inner maximum.
    """

    kind: Literal["dynamic"]
    batch_ms: dict[int, Positive]
    max_delay_ms: NotNegative = 1.0
    time_scale: Positive = 1.0
    peak_tensor: Share = 0.55
    busy_dram: Share = 0.45

    @model_validator(mode="after")
    def _table_covers_the_batches(self) -> DynamicServer:
        if 1 not in self.batch_ms or max(self.batch_ms) < self.batch_max:
            raise ValueError(f"batch_ms must have an entry for 1 and one for batch_max ({self.batch_max}) or more")
        return self

    @cached_property
    def times_s(self) -> tuple[float, ...]:
        """Seconds of a batch of 0, 1, 2 ... `batch_max` requests (0 for none)."""
        sizes = sorted(self.batch_ms)
        times = [0.0]
        for batch in range(1, self.batch_max + 1):
            above = next(size for size in sizes if size >= batch)
            below = max((size for size in sizes if size <= batch), default=above)
            share = (batch - below) / (above - below) if above > below else 0.0
            ms = self.batch_ms[below] + share * (self.batch_ms[above] - self.batch_ms[below])
            times.append(self.time_scale * ms / 1000.0)
        return tuple(times)

    def sustainable_per_s(self, prompt_tokens: float = 0.0, output_tokens: float = 0.0) -> float:
        """Requests per second that one replica carries at its best batch; lengths do not matter here."""
        return max(batch / self.times_s[batch] for batch in range(1, self.batch_max + 1))

    def best_batch(self, prompt_tokens: float = 0.0, output_tokens: float = 0.0) -> float:
        """The smallest batch of the highest throughput."""
        return float(max(range(1, self.batch_max + 1), key=lambda batch: batch / self.times_s[batch]))


Server = ContinuousServer | DynamicServer
_SERVER: TypeAdapter[Server] = TypeAdapter(Annotated[Server, Field(discriminator="kind")])


def load(preset_or_file: str) -> Server:
    """A server by the name of a preset or from a YAML file.

    Raises
    ------
    ServerError
        There is no such preset and no such file, or the file is not a valid server.
    """
    path = PRESETS / f"{preset_or_file}.yaml"
    if not path.is_file():
        path = Path(preset_or_file)
    if not path.is_file():
        raise ServerError(f"no server {preset_or_file!r}: name a file, or one of {', '.join(presets())}")
    try:
        return parse(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ServerError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ServerError(f"{path}: {error}") from None


def parse(document: Any) -> Server:
    """A server from a mapping; `kind` defaults to continuous. Raises ServerError."""
    if isinstance(document, dict):
        document = {"kind": "continuous", **document}
    try:
        return _SERVER.validate_python(document)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc'][1:])) or 'server'}: {one['msg']}" for one in error.errors()]
        raise ServerError("\n".join(lines)) from None


def presets() -> tuple[str, ...]:
    """Names of the servers that come with the lab."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))
