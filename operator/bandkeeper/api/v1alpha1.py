"""`GPUScalingPolicy` v1alpha1 as pydantic models: the one source of the CRD, of validation and of defaults.

Descriptions, bounds and rules here become the CRD's. What depends on the objective has no default here, so that
changing the objective changes it; `status.effective` shows what is in force.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel, to_snake

from bandkeeper.api.rules import Distinct, Rule, RuledModel, duration, matches

GROUP = "bandkeeper.dev"
VERSION = "v1alpha1"
KIND = "GPUScalingPolicy"
PLURAL = "gpuscalingpolicies"
PAUSED_ANNOTATION = f"{GROUP}/paused"
NAME_LIMIT = 63  # of a policy: its name can always be the value of a label
MESSAGE_LIMIT = 256
COUNT_LIMIT = 1_000_000
BATCH_LIMIT = 65_536
HISTORY_LIMIT = 10
ADVICE_LIMIT = 3
STATUS_LIMIT_BYTES = 8192


class Objective(StrEnum):
    LATENCY_SENSITIVE = "LatencySensitive"
    THROUGHPUT_SENSITIVE = "ThroughputSensitive"
    BALANCED = "Balanced"


class Mode(StrEnum):
    ENFORCE = "Enforce"
    RECOMMEND = "Recommend"


class BacklogRate(StrEnum):
    REQUESTS_FINISHED = "RequestsFinished"
    PROMPT_TOKENS = "PromptTokens"
    GENERATION_TOKENS = "GenerationTokens"
    SAMPLES = "Samples"


class SelectPolicy(StrEnum):
    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


class ScalingPolicyType(StrEnum):
    PODS = "Pods"
    PERCENT = "Percent"


class FallbackBehavior(StrEnum):
    HOLD = "Hold"
    REPLICAS_IF_HIGHER = "ReplicasIfHigher"
    REPLICAS = "Replicas"


class AdapterType(StrEnum):
    ANNOTATION = "Annotation"
    POD_TEMPLATE = "PodTemplate"
    HTTP = "HTTP"
    CONFIG_MAP = "ConfigMap"
    TRITON = "Triton"
    RAY_SERVE = "RayServe"
    K_SERVE = "KServe"

    @property
    def member(self) -> str:
        """The member of an adapter that holds its settings; its chart values are under `adapters` by that name."""
        return self.value.lower() if self.value.isupper() else self.value[0].lower() + self.value[1:]


class Scheme(StrEnum):
    HTTP = "HTTP"
    HTTPS = "HTTPS"


class Method(StrEnum):
    POST = "POST"
    PUT = "PUT"
    PATCH = "PATCH"


class PodTemplatePreset(StrEnum):
    VLLM = "VLLM"
    VLLM_ACTIVE = "VLLMActive"
    SGLANG = "SGLang"
    TGI = "TGI"
    TENSORRT_LLM = "TensorRTLLM"


ApiVersion = Annotated[
    str,
    Field(min_length=1, max_length=317),
    matches(
        "([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?v[0-9][a-z0-9]*",
        "must be group/version, such as apps/v1, or a version, such as v1",
    ),
]
KindName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    matches("[A-Z][A-Za-z0-9]*", "must be a kind in CamelCase, such as Deployment"),
]
ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches("[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "must be an object's name: lower case letters, digits, '-' and '.'"),
]
ContainerName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    matches("[a-z0-9]([-a-z0-9]*[a-z0-9])?", "must be a container's name: lower case letters, digits and '-'"),
]
OpenName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    matches("[A-Za-z][A-Za-z0-9]*", "must be one word in CamelCase, letters and digits only"),
]
VariableName = Annotated[
    str,
    Field(min_length=1, max_length=128),
    matches("[A-Za-z_][A-Za-z0-9_]*", "must be the name of an environment variable, such as MAX_NUM_SEQS"),
]
Flag = Annotated[
    str,
    Field(min_length=1, max_length=128),
    matches("--?[A-Za-z0-9][-A-Za-z0-9_.]*", "must be a flag without its value, such as --max-num-seqs"),
]
AnnotationKey = Annotated[
    str,
    Field(min_length=1, max_length=78),
    matches(
        "bandkeeper[.]dev/[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?",
        "must be an annotation key that is the operator's to write: bandkeeper.dev/ and a name in lower case, "
        "such as bandkeeper.dev/batch-cap",
    ),
]
CapPath = Annotated[
    str,
    Field(min_length=1, max_length=512),
    matches(
        "/([A-Za-z0-9._~/%?=&:,+-]|[{](cap|pod|namespace)[}])*",
        "must be a path on the pod's server that begins with /, with no placeholders but {cap}, {pod} and {namespace}, "
        "such as /admin/batch?size={cap}",
    ),
]
ReadPath = Annotated[
    str,
    Field(min_length=1, max_length=512),
    matches(
        "/([A-Za-z0-9._~/%?=&:,+-]|[{](pod|namespace)[}])*",
        "must be a path on the pod's server that begins with /, with no placeholders but {pod} and {namespace}, "
        "such as /admin/batch",
    ),
]
CapBody = Annotated[
    str,
    Field(min_length=1, max_length=2048),
    Rule(
        cel="!self.replace('{cap}', '').replace('{pod}', '').replace('{namespace}', '')"
        ".matches('[{][A-Za-z_][A-Za-z0-9_]*[}]')",
        holds=lambda body: (
            not re.search(
                "[{][A-Za-z_][A-Za-z0-9_]*[}]",
                body.replace("{cap}", "").replace("{pod}", "").replace("{namespace}", ""),
            )
        ),
        message="must have no placeholders but {cap}, {pod} and {namespace}",
    ),
]
JSONPointer = Annotated[
    str,
    Field(max_length=256),
    matches(
        "(/([^~/]|~[01])*)*",
        "must be a JSON pointer, such as /limits/max_batch_size, or empty for the whole answer",
    ),
]
MediaType = Annotated[
    str,
    Field(min_length=1, max_length=127),
    matches("[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+", "must be a media type without parameters, such as application/json"),
]
HostName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches("[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "must be a host name in lower case, such as chat.serving.svc"),
]
CredentialName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    matches(
        "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
        "must be the name of a credential in the operator's configuration: lower case letters, digits and '-'",
    ),
]
ConfigKey = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches("[-._a-zA-Z0-9]+", "must be a key of a ConfigMap: letters, digits, '-', '_' and '.'"),
]
Port = Annotated[int, Field(ge=1, le=65_535)]
TritonModel = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches(
        "[A-Za-z0-9_][-A-Za-z0-9_.]*",
        "must be the name of a model as Triton knows it, such as resnet50, without its version",
    ),
]
MetricName = Annotated[
    str,
    Field(min_length=1, max_length=255),
    matches("[a-zA-Z_:][a-zA-Z0-9_:]*", "must be the name of a metric, such as my_queue_size; for PromQL write query"),
]
ServerName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    matches("[a-z0-9]([-a-z0-9]*[a-z0-9])?", "must be the name of a Prometheus in the operator's configuration"),
]
ServiceName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    matches("[a-z0-9]([-a-z0-9]*[a-z0-9])?", "must be the name of a Service beside the policy, such as ray-head-svc"),
]
RayName = Annotated[
    str,
    Field(min_length=1, max_length=128),
    matches("[A-Za-z0-9_][-A-Za-z0-9_.]*", "must be a name as in the Serve config: letters, digits, '-', '_' and '.'"),
]
ServerURL = Annotated[
    str,
    Field(min_length=1, max_length=512),
    matches(
        "https?://[A-Za-z0-9.:_[\\]-]+(/[A-Za-z0-9._~/%-]*)?",
        "must be http:// or https:// with host and path only, such as http://prometheus.monitoring:9090; "
        "credentials belong in the operator's configuration, then write name",
    ),
]
Share = Annotated[
    str,
    Field(min_length=1, max_length=8),
    matches("0([.][0-9]{1,4})?|1([.]0{1,4})?", "must be a share from 0 to 1, such as '0.05' for 5 percent"),
]
Price = Annotated[
    str,
    Field(min_length=1, max_length=16),
    matches("(0|[1-9][0-9]{0,6})([.][0-9]{1,6})?", "must be an amount as a string, such as '2.50'"),
]
Milliseconds = Annotated[
    str,
    Field(min_length=1, max_length=12),
    matches(
        "[1-9][0-9]{0,5}([.][0-9]{1,6})?|0[.][0-9]{0,5}[1-9][0-9]{0,5}",
        "must be milliseconds above 0 as a string, such as '7.5'",
    ),
]
Currency = Annotated[
    str,
    Field(min_length=3, max_length=3),
    matches("[A-Z]{3}", "must be a currency of three capital letters, such as USD"),
]
_DAYS = (
    "20[0-9]{2}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    "|20(0[048]|[2468][048]|[13579][26])-02-29"
)
Instant = Annotated[
    str,
    Field(max_length=20),
    matches(
        f"({_DAYS})T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z",
        "must be a time in UTC, such as 2026-12-01T06:00:00Z",
    ),
]
TimeToFinish = Annotated[str, Field(max_length=24), duration(least="1m", most="720h")]
QueueDelay = Annotated[str, Field(max_length=24), duration(most="10s")]
PositiveDuration = Annotated[str, Field(max_length=24), duration(most="24h")]
RequestTimeout = Annotated[str, Field(max_length=24), duration(least="100ms", most="10s")]
Delay = Annotated[str, Field(max_length=24), duration(least="0s", most="60s")]
Window = Annotated[str, Field(max_length=24), duration(least="5s", most="1h")]
ReplicaCount = Annotated[int, Field(ge=1, le=10_000)]
BatchSize = Annotated[int, Field(ge=1, le=BATCH_LIMIT)]
BandEdge = Annotated[int, Field(ge=1, le=100)]
Percentile = Annotated[int, Field(ge=1, le=99)]
Rate = Annotated[int, Field(ge=1, le=1_000_000_000)]
WindowSeconds = Annotated[int, Field(ge=0, le=3600)]


class _Model(RuledModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel, populate_by_name=True)


class TargetRef(_Model):
    """Names one object in the policy's own namespace."""

    api_version: ApiVersion = Field(examples=["apps/v1"], description="API group and version of the target.")
    kind: KindName = Field(examples=["Deployment"], description="Kind of the target.")
    name: ObjectName = Field(examples=["chat"], description="Name of the target.")


class SLO(_Model):
    """A promise over one signal: a latency percentile (threshold) or a rate (minPerSecond)."""

    rules: ClassVar = (
        Rule(
            cel="has(self.threshold) != has(self.minPerSecond)",
            holds=lambda slo: (slo.threshold is None) != (slo.min_per_second is None),
            message="must have exactly one of threshold (for a latency, such as 500ms) "
            "and minPerSecond (for a rate, such as 100)",
        ),
        Rule(
            cel="!has(self.minPerSecond) || self.percentile == 95",
            holds=lambda slo: slo.min_per_second is None or slo.percentile == 95,
            message="must be left out beside minPerSecond: a rate has no percentile",
            path=".percentile",
            reason="FieldValueForbidden",
        ),
    )

    signal: OpenName = Field(
        examples=["TimeToFirstToken"],
        description="The signal that is promised, such as TimeToFirstToken, InterTokenLatency, EndToEndLatency, "
        "QueueTime, GenerationTokens or Samples. An unknown name gives a condition that lists the known ones.",
    )
    percentile: Percentile = Field(
        default=95, description="The percentile of a latency that threshold bounds. A rate leaves it out."
    )
    threshold: PositiveDuration | None = Field(
        default=None,
        examples=["500ms"],
        description="The most that the percentile of the latency may be: a duration of at most 24h, such as 500ms, "
        "7500us or 2s.",
    )
    min_per_second: Rate | None = Field(
        default=None,
        examples=[100],
        description="The least rate, in the signal's unit per second (requests, tokens, samples), while work waits.",
    )
    window: Window = Field(
        default="60s", description="The time over which the promise is judged: a duration from 5s to 1h."
    )


class Replicas(_Model):
    """Bounds of the replica count."""

    rules: ClassVar = (
        Rule(
            cel="self.min <= self.max",
            holds=lambda replicas: replicas.min <= replicas.max,
            message="must be at least replicas.min: raise max or lower min",
            path=".max",
        ),
    )

    min: Annotated[
        int,
        Field(ge=0, le=10_000),
        Rule(
            cel="self >= 1",
            holds=lambda least: least >= 1,
            message="must be at least 1: scale to zero needs an activation source and is planned; write 1",
        ),
    ] = Field(
        default=1,
        description="The fewest replicas, at least 1: scale to zero needs an activation source and is planned.",
    )
    max: ReplicaCount = Field(examples=[16], description="The most replicas; pods of a rollout's surge count.")


class Band(_Model):
    """Utilisation between which nothing is done."""

    rules: ClassVar = (
        Rule(
            cel="self.lowPercent < self.highPercent",
            holds=lambda band: band.low_percent < band.high_percent,
            message="must be less than highPercent, such as lowPercent: 60 and highPercent: 70",
            path=".lowPercent",
        ),
    )

    low_percent: BandEdge = Field(examples=[60], description="Low edge in percent. Below it replicas may be let go.")
    high_percent: BandEdge = Field(examples=[70], description="High edge in percent. Above it capacity is added.")


class AnnotationAdapter(_Model):
    """Writes the cap to an annotation of each pod, which the pod reads through the downward API."""

    key: AnnotationKey = Field(
        default=f"{GROUP}/batch-cap",
        description="Key of the pod annotation that carries the cap, under bandkeeper.dev/.",
    )


class PodTemplateAdapter(_Model):
    """Writes the cap into the pod template: exactly one of `preset`, `env` and `argument`."""

    rules: ClassVar = (
        Rule(
            cel="(has(self.preset) ? 1 : 0) + (has(self.env) ? 1 : 0) + (has(self.argument) ? 1 : 0) == 1",
            holds=lambda adapter: [adapter.preset, adapter.env, adapter.argument].count(None) == 2,
            message="must have exactly one of preset (a server, such as VLLM), env (a variable, such as MAX_NUM_SEQS) "
            "and argument (a flag, such as --max-num-seqs)",
        ),
    )

    container: ContainerName = Field(examples=["server"], description="Name of the container whose cap is set.")
    preset: PodTemplatePreset | None = Field(
        default=None,
        description="A server whose variable and flag are known: the variable where the container has it, else the "
        "flag. VLLM: MAX_NUM_SEQS or --max-num-seqs. VLLMActive: MAX_NUM_ACTIVE_SEQS or --max-num-active-seqs, which "
        "holds back admission below the capacity that --max-num-seqs boots. SGLang: MAX_RUNNING_REQUESTS or "
        "--max-running-requests. TGI: MAX_BATCH_SIZE or --max-batch-size. TensorRTLLM: MAX_BATCH_SIZE or "
        "--max_batch_size.",
    )
    env: VariableName | None = Field(
        default=None, examples=["MAX_NUM_SEQS"], description="Environment variable that holds the cap."
    )
    argument: Flag | None = Field(
        default=None,
        examples=["--max-num-seqs"],
        description="Argument that holds the cap, as --flag=64 or as --flag followed by 64.",
    )


class HTTPReadBack(_Model):
    """Where a server says which cap it runs with."""

    path: ReadPath = Field(
        examples=["/admin/batch"],
        description="Path that is asked with GET and answers in JSON. {pod} and {namespace} are filled in.",
    )
    pointer: JSONPointer = Field(
        default="",
        examples=["/max_batch_size"],
        description="JSON pointer to the cap in the answer; empty where the whole answer is the number.",
    )


_SERVER_NAME_RULE = Rule(
    cel="self.scheme == 'HTTPS' || !has(self.serverName)",
    holds=lambda adapter: adapter.scheme is Scheme.HTTPS or adapter.server_name is None,
    message="must be left out unless scheme is HTTPS",
    path=".serverName",
    reason="FieldValueForbidden",
)


class HTTPAdapter(_Model):
    """Sends a request to the server in each ready pod, at the pod's own IP."""

    rules: ClassVar = (
        Rule(
            cel="self.path.contains('{cap}') || (has(self.body) && self.body.contains('{cap}'))",
            holds=lambda adapter: "{cap}" in adapter.path or "{cap}" in (adapter.body or ""),
            message="must have {cap} in path or body, where the batch cap belongs, "
            "such as body: '{\"max_batch_size\": {cap}}'",
        ),
        _SERVER_NAME_RULE,
    )

    port: Port = Field(examples=[8000], description="Port of the pod that the server listens on.")
    scheme: Scheme = Field(default=Scheme.HTTP, description="HTTP, or HTTPS for TLS.")
    server_name: HostName | None = Field(
        default=None,
        examples=["chat.serving.svc"],
        description="Name that the server's certificate must have. Left out: the pod's IP.",
    )
    method: Method = Field(default=Method.POST, description="Method of the request that sets the cap.")
    path: CapPath = Field(
        examples=["/admin/batch"],
        description="Path of the request, with its query. {cap}, {pod} and {namespace} are filled in.",
    )
    body: CapBody | None = Field(
        default=None,
        examples=['{"max_batch_size": {cap}}'],
        description="Body of the request. {cap}, {pod} and {namespace} are filled in.",
    )
    content_type: MediaType = Field(default="application/json", description="Content-Type of the body.")
    expect_status: Annotated[list[Annotated[int, Field(ge=200, le=299)]], Distinct(), Field(max_length=10)] = Field(
        default=[],
        examples=[[200, 202]],
        description="Status codes that say that it was done. Left out: every one from 200 to 299.",
    )
    credential: CredentialName | None = Field(
        default=None,
        examples=["chat-admin"],
        description="Name of a credential in the chart value podAccess.credentials, sent as a header.",
    )
    timeout: RequestTimeout = Field(default="5s", description="Time for one request: a duration from 100ms to 10s.")
    delay: Delay = Field(
        default="0s",
        description="How long after its answer the server runs with the new cap: a duration of at most 60s.",
    )
    read_back: HTTPReadBack | None = Field(
        default=None,
        description="Where the cap in force is read. Left out: what was written counts, until the pod restarts.",
    )


class ConfigMapAdapter(_Model):
    """Writes the cap to one key of one ConfigMap, which the pods see as a file."""

    name: ObjectName = Field(
        examples=["chat-batch"], description="Name of the ConfigMap, in the policy's namespace. It must exist."
    )
    key: ConfigKey = Field(default="batch-cap", description="Key that holds the cap, a whole number.")


class TritonAdapter(_Model):
    """Loads one model of Triton's with the cap as max_batch_size, in each ready pod."""

    rules: ClassVar = (_SERVER_NAME_RULE,)

    model: TritonModel = Field(examples=["resnet50"], description="The model, as Triton knows it.")
    http_port: Port = Field(default=8000, description="Port of each pod on which Triton's HTTP API listens.")
    scheme: Scheme = Field(default=Scheme.HTTP, description="HTTP, or HTTPS where something speaks TLS for Triton.")
    server_name: HostName | None = Field(
        default=None,
        examples=["images.vision.svc"],
        description="Name that the certificate must have. Left out: the pod's IP.",
    )
    credential: CredentialName | None = Field(
        default=None,
        examples=["triton-admin"],
        description="Name of a credential in the chart value podAccess.credentials, sent as a header, such as the one "
        "that --http-restricted-api asks for.",
    )
    preferred_batch_sizes: Annotated[list[BatchSize], Distinct(), Field(max_length=16)] | None = Field(
        default=None,
        examples=[[8, 16]],
        description="Batch sizes that Triton prefers to form; those above the cap are left out of what is loaded. "
        "Left out: as they are in the server.",
    )
    max_queue_delay: QueueDelay | None = Field(
        default=None,
        examples=["2ms"],
        description="The longest that Triton holds a request back for others to join its batch: a duration of at most "
        "10s. Left out: as it is in the server.",
    )


class RayServeAdapter(_Model):
    """Writes the cap to a key of the `user_config` of one deployment of a Ray Serve application."""

    application: RayName = Field(examples=["default"], description="Name of the application in the Serve config.")
    deployment: RayName = Field(examples=["Embedder"], description="Name of the deployment whose user_config is set.")
    key: RayName = Field(
        default="max_batch_size",
        description="Key of the user_config that holds the cap. The deployment takes it over in its reconfigure().",
    )
    service: ServiceName | None = Field(
        default=None,
        examples=["ray-head-svc"],
        description="Service before the dashboard of the Ray cluster that all pods make up. Left out: of rayService, "
        "the Service that KubeRay makes for it; without rayService each pod is a Ray cluster of its own and is asked.",
    )
    port: Port = Field(default=8265, description="Port of the Ray dashboard.")
    credential: CredentialName | None = Field(
        default=None,
        examples=["ray-token"],
        description="Name of a credential in the chart value podAccess.credentials, for a Ray that wants a token.",
    )
    ray_service: ObjectName | None = Field(
        default=None,
        examples=["embed"],
        description="KubeRay RayService into whose spec.serveConfigV2 the cap is written; KubeRay hands it on to Ray.",
    )


class KServeAdapter(_Model):
    """Writes the cap to the batcher of a KServe InferenceService, whose predictor's Deployment is the target."""

    inference_service: ObjectName = Field(
        examples=["iris"], description="The InferenceService whose spec.predictor.batcher.maxBatchSize is set."
    )


def _annotation_by_default(fields: dict[str, Any]) -> AnnotationAdapter | None:
    return AnnotationAdapter() if fields.get("type") is AdapterType.ANNOTATION else None


def _settings(adapter: Any, kind: AdapterType) -> Any:
    return getattr(adapter, to_snake(kind.member))


def _only_of(kind: AdapterType) -> Rule:
    """The settings of one type stand beside no other type."""
    return Rule(
        cel=f"self.type == '{kind}' || !has(self.{kind.member})",
        holds=lambda adapter: adapter.type is kind or _settings(adapter, kind) is None,
        message=f"must be left out unless type is {kind}",
        path=f".{kind.member}",
        reason="FieldValueForbidden",
    )


def _needed_by(kind: AdapterType, example: str) -> Rule:
    """The type cannot be without its settings."""
    return Rule(
        cel=f"self.type != '{kind}' || has(self.{kind.member})",
        holds=lambda adapter: adapter.type is not kind or _settings(adapter, kind) is not None,
        message=f"must be set when type is {kind}, such as {example}",
        path=f".{kind.member}",
        reason="FieldValueRequired",
    )


class Adapter(_Model):
    """How the batch cap reaches the model server. The member named like `type` holds its settings."""

    rules: ClassVar = (
        _only_of(AdapterType.ANNOTATION),
        _only_of(AdapterType.POD_TEMPLATE),
        _needed_by(AdapterType.POD_TEMPLATE, "{container: server, preset: VLLM}"),
        _only_of(AdapterType.HTTP),
        _needed_by(AdapterType.HTTP, "{port: 8000, path: '/admin/batch?size={cap}'}"),
        _only_of(AdapterType.CONFIG_MAP),
        _needed_by(AdapterType.CONFIG_MAP, "{name: chat-batch}"),
        _only_of(AdapterType.TRITON),
        _needed_by(AdapterType.TRITON, "{model: resnet50}"),
        _only_of(AdapterType.RAY_SERVE),
        _needed_by(AdapterType.RAY_SERVE, "{application: default, deployment: Embedder, service: ray-head-svc}"),
        _only_of(AdapterType.K_SERVE),
        _needed_by(AdapterType.K_SERVE, "{inferenceService: iris}"),
    )

    type: AdapterType = Field(
        description="Annotation: a pod annotation that the server reads through the downward API, in force within "
        "about two minutes. PodTemplate: a variable or argument of the pod template, in force by a rollout. "
        "HTTP: a request to the server in each pod, in force at once. ConfigMap: a key of a ConfigMap that the pods "
        "mount, in force within about two minutes. Triton: a load of the model in each running server, in force within "
        "seconds. RayServe: a key of a deployment's user_config, in force at once. KServe: the batcher's size, by a "
        "rollout.",
    )
    annotation: AnnotationAdapter | None = Field(
        default_factory=_annotation_by_default,
        description="Settings of type Annotation; may be left out, then the key is bandkeeper.dev/batch-cap.",
    )
    pod_template: PodTemplateAdapter | None = Field(
        default=None,
        description="Settings of type PodTemplate: the container and exactly one of preset, env and argument.",
    )
    http: HTTPAdapter | None = Field(default=None, description="Settings of type HTTP: the request, and the answer.")
    config_map: ConfigMapAdapter | None = Field(
        default=None, description="Settings of type ConfigMap: its name and the key."
    )
    triton: TritonAdapter | None = Field(default=None, description="Settings of type Triton: the model.")
    ray_serve: RayServeAdapter | None = Field(
        default=None, description="Settings of type RayServe: which user_config, and where its Ray cluster is asked."
    )
    k_serve: KServeAdapter | None = Field(default=None, description="Settings of type KServe: the InferenceService.")


class Batch(_Model):
    """Bounds of the batch cap and how it is set."""

    rules: ClassVar = (
        Rule(
            cel="self.min <= self.max",
            holds=lambda batch: batch.min <= batch.max,
            message="must be at least batch.min: raise max or lower min",
            path=".max",
        ),
        Rule(
            cel="!has(self.candidates) || self.candidates.all(size, size >= self.min && size <= self.max)",
            holds=lambda batch: all(batch.min <= size <= batch.max for size in batch.candidates or ()),
            message="must all lie between batch.min and batch.max",
            path=".candidates",
        ),
    )

    min: BatchSize = Field(default=1, description="The smallest batch cap.")
    max: BatchSize = Field(examples=[256], description="The largest batch cap.")
    candidates: Annotated[list[BatchSize], Distinct(), Field(min_length=1, max_length=32)] | None = Field(
        default=None,
        examples=[[8, 16, 32, 64]],
        description="The only caps that may be set. Left out: the operator chooses sizes from min to max.",
    )
    adapter: Adapter = Field(
        examples=[{"type": "Annotation"}], description="How the batch cap reaches the model server."
    )


class ScalingPolicy(_Model):
    """One limit on the rate of change, with the meaning that it has in an HPA."""

    type: ScalingPolicyType = Field(description="Whether value counts pods or percent of the replicas.")
    value: Annotated[int, Field(ge=1, le=10_000)] = Field(
        examples=[4], description="The most change in one period, in pods or percent."
    )
    period_seconds: Annotated[int, Field(ge=1, le=1800)] = Field(
        examples=[60], description="Length of the period in seconds, at most 1800."
    )


class ScalingRules(_Model):
    """One direction, with the fields and the meaning of an HPA's behavior."""

    stabilization_window_seconds: WindowSeconds | None = Field(
        default=None,
        examples=[300],
        description="Seconds of past recommendations that are looked back on: scaling down uses the highest of them, "
        "scaling up the lowest. Left out: by the objective.",
    )
    select_policy: SelectPolicy | None = Field(
        default=None,
        description="Which policy counts where several apply; Disabled forbids this direction. Left out: Max.",
    )
    policies: Annotated[list[ScalingPolicy], Field(min_length=1, max_length=10)] | None = Field(
        default=None, description="Limits on the rate of change. Left out: by the objective."
    )
    tolerance: Share | None = Field(
        default=None,
        examples=["0.05"],
        description="Share by which the wanted capacity may differ before anything is done, as a string such as "
        "'0.05'. Left out: by the objective.",
    )


class Behavior(_Model):
    """How fast replicas may change, as in an HPA."""

    scale_up: ScalingRules | None = Field(default=None, description="How fast replicas may be added.")
    scale_down: ScalingRules | None = Field(default=None, description="How fast replicas may be removed.")
    drain_seconds: Annotated[int, Field(ge=5, le=3600)] | None = Field(
        default=None,
        examples=[300],
        description="Seconds in which requests that wait are to be done once the replicas ordered for them are ready, "
        "beside those that arrive. Left out: 60, with at most twice the replicas that arriving work needs, and two.",
    )


class Fallback(_Model):
    """What holds when metrics are missing for too long."""

    rules: ClassVar = (
        Rule(
            cel="self.behavior == 'Hold' || has(self.replicas)",
            holds=lambda fallback: fallback.behavior is FallbackBehavior.HOLD or fallback.replicas is not None,
            message="must be set when behavior is Replicas or ReplicasIfHigher, such as replicas: 4",
            path=".replicas",
            reason="FieldValueRequired",
        ),
        Rule(
            cel="self.behavior != 'Hold' || !has(self.replicas)",
            holds=lambda fallback: fallback.behavior is not FallbackBehavior.HOLD or fallback.replicas is None,
            message="must be left out when behavior is Hold; to use it, write behavior: ReplicasIfHigher",
            path=".replicas",
            reason="FieldValueForbidden",
        ),
    )

    after: PositiveDuration = Field(
        default="180s",
        description="How long metrics must be missing before the fallback holds: a duration of at most 24h.",
    )
    behavior: FallbackBehavior = Field(
        default=FallbackBehavior.HOLD,
        description="Hold: change nothing. ReplicasIfHigher: at least `replicas`, never fewer than now. "
        "Replicas: exactly `replicas`, fewer than now included.",
    )
    replicas: ReplicaCount | None = Field(
        default=None,
        examples=[4],
        description="Replicas for Replicas and ReplicasIfHigher, between replicas.min and replicas.max.",
    )


class SignalSource(_Model):
    """Where one signal comes from instead of the runtime's preset: exactly one of `metric` and `query`."""

    rules: ClassVar = (
        Rule(
            cel="has(self.metric) != has(self.query)",
            holds=lambda source: (source.metric is None) != (source.query is None),
            message="must have exactly one of metric (a name, read as the preset reads its own) and query (PromQL)",
        ),
    )

    signal: OpenName = Field(examples=["RequestsWaiting"], description="The signal that is read elsewhere.")
    metric: MetricName | None = Field(
        default=None,
        examples=["my_queue_size"],
        description="Name of a metric that is read the way the preset reads its own: a gauge, a counter, or a "
        "histogram without _bucket.",
    )
    query: Annotated[str, Field(min_length=1, max_length=2048)] | None = Field(
        default=None,
        examples=["sum by (pod) (my_queue)"],
        description="PromQL that gives the signal in its unit, by (pod) or for the whole workload.",
    )


class PrometheusSelection(_Model):
    """Which Prometheus answers: exactly one of `name` and `url`."""

    rules: ClassVar = (
        Rule(
            cel="has(self.name) != has(self.url)",
            holds=lambda prometheus: (prometheus.name is None) != (prometheus.url is None),
            message="must have exactly one of name (of the operator's configuration) and url",
        ),
    )

    name: ServerName | None = Field(
        default=None, examples=["default"], description="Name of a Prometheus in the operator's configuration."
    )
    url: ServerURL | None = Field(
        default=None,
        examples=["http://prometheus.monitoring:9090"],
        description="Address of a Prometheus that needs no credentials.",
    )


class Cost(_Model):
    """What GPU time costs, so that what is wasted has a price."""

    price_per_gpu_hour: Price = Field(
        alias="pricePerGPUHour", examples=["2.50"], description="Price of one GPU for one hour, as a string."
    )
    currency: Currency = Field(default="USD", description="Currency of the price; only a label of the figures.")


BytesPerSecond = Annotated[int, Field(ge=1, le=10**15)]


class SharedLimits(_Model):
    """What all replicas share and no replica brings more of. Once it is full, more replicas do not help."""

    network_bytes_per_second: BytesPerSecond | None = Field(
        default=None, description="What the replicas together can send or receive, such as 1250000000 for 10 Gbit/s."
    )
    storage_bytes_per_second: BytesPerSecond | None = Field(
        default=None, description="What the replicas together can read from or write to storage."
    )


Watts = Annotated[int, Field(ge=1, le=10_000)]


class Backlog(_Model):
    """Work that is to be done by a deadline: exactly one of `within` and `by`."""

    rules: ClassVar = (
        Rule(
            cel="has(self.within) != has(self.by)",
            holds=lambda backlog: (backlog.within is None) != (backlog.by is None),
            message="must have exactly one of within (a duration, such as 4h) and by (a time, such as "
            "2026-12-01T06:00:00Z)",
        ),
    )

    rate: BacklogRate = Field(
        description="The signal that tells how fast the backlog is done, and so what it is counted in: requests, "
        "tokens or samples. The backlog itself is the signal Backlog of spec.signals; where that has no Backlog, the "
        "requests in the servers."
    )
    within: TimeToFinish | None = Field(
        default=None,
        examples=["4h"],
        description="What waits at any time is done so much later: a duration from 1m to 720h.",
    )
    by: Instant | None = Field(
        default=None, examples=["2026-12-01T06:00:00Z"], description="When nothing is left any more: a time in UTC."
    )


class Constraints(_Model):
    """Limits that hold whatever the objective."""

    power_watts_per_gpu: Watts | None = Field(
        default=None,
        alias="powerWattsPerGPU",
        examples=[60],
        description="The most power that each GPU may draw, in watts, as a mean of a minute. The batch cap is kept as "
        "large as this allows, also while work waits, and replicas take over the rest. Needs batch.",
    )
    parallel_efficiency_percent: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None,
        examples=[75],
        description="For training and batch jobs: workers are added only while each of them does at least this percent "
        "of what one of the fewest seen did, and one is let go while they do less.",
    )


class ProfiledBatch(_Model):
    """The time of a batch, or of a step of a server that batches continuously, as it was measured."""

    size: BatchSize = Field(description="Requests in the batch.")
    milliseconds: Milliseconds = Field(examples=["5.8"], description="Time of the batch, as a string.")


class Profile(_Model):
    """What was measured of the servers beforehand. It counts until the servers themselves have told enough."""

    rules: ClassVar = (
        Rule(
            cel="has(self.alphaMilliseconds) != has(self.batchTimes)",
            holds=lambda profile: (profile.alpha_milliseconds is None) != (profile.batch_times is None),
            message="must have one of alphaMilliseconds, the time of a step, and batchTimes, a table of such times",
        ),
        Rule(
            cel="!has(self.betaMilliseconds) || has(self.alphaMilliseconds)",
            holds=lambda profile: profile.beta_milliseconds is None or profile.alpha_milliseconds is not None,
            message="must go with alphaMilliseconds: batchTimes have it in them",
            path=".betaMilliseconds",
            reason="FieldValueForbidden",
        ),
    )

    alpha_milliseconds: Milliseconds | None = Field(
        default=None,
        examples=["20.58"],
        description="Time of a decode step of an empty server, as a string. Left out: batchTimes tell.",
    )
    beta_milliseconds: Milliseconds | None = Field(
        default=None,
        examples=["0.41"],
        description="More for each request in the batch, with a context as long as yours. Left out: not known.",
    )
    delta_milliseconds: Milliseconds | None = Field(
        default=None, examples=["0.1"], description="More for each prompt token that a step reads. Left out: not known."
    )
    kv_tokens: Annotated[int, Field(ge=16, le=1_000_000_000)] | None = Field(
        default=None,
        examples=[460_000],
        description="Tokens that the KV cache of a replica holds. Left out: as the servers tell.",
    )
    batch_times: Annotated[list[ProfiledBatch], Distinct(("size",)), Field(min_length=1, max_length=16)] | None = Field(
        default=None,
        examples=[[{"size": 1, "milliseconds": "2.1"}, {"size": 16, "milliseconds": "5.8"}]],
        description="Times by the size of the batch, in place of alphaMilliseconds and betaMilliseconds.",
    )


class Spec(_Model):
    """What is wanted for one workload."""

    rules: ClassVar = (
        Rule(
            cel="!has(self.constraints) || !has(self.constraints.powerWattsPerGPU) || has(self.batch)",
            holds=lambda spec: (
                spec.constraints is None or spec.constraints.power_watts_per_gpu is None or spec.batch is not None
            ),
            message="must be set when constraints.powerWattsPerGPU is: the batch cap is what lowers power; "
            "without it set the limit of the GPU itself (nvidia-smi --power-limit)",
            path=".batch",
            reason="FieldValueRequired",
        ),
        Rule(
            cel="self.objective == 'ThroughputSensitive' || (has(self.slos) && size(self.slos) > 0)",
            holds=lambda spec: spec.objective is Objective.THROUGHPUT_SENSITIVE or bool(spec.slos),
            message="must have at least one entry when objective is LatencySensitive or Balanced, "
            "such as {signal: TimeToFirstToken, percentile: 95, threshold: 500ms}",
            path=".slos",
            reason="FieldValueRequired",
        ),
        Rule(
            cel="!has(self.backlog) || self.objective == 'ThroughputSensitive'",
            holds=lambda spec: spec.backlog is None or spec.objective is Objective.THROUGHPUT_SENSITIVE,
            message="must be ThroughputSensitive beside backlog: what may wait for a deadline has no latency to keep",
            path=".objective",
        ),
        Rule(
            cel="!has(self.backlog) || self.backlog.rate == 'RequestsFinished' || "
            "(has(self.signals) && self.signals.exists(source, source.signal == 'Backlog'))",
            holds=lambda spec: (
                spec.backlog is None
                or spec.backlog.rate is BacklogRate.REQUESTS_FINISHED
                or any(source.signal == "Backlog" for source in spec.signals)
            ),
            message="must give the signal Backlog unless backlog.rate is RequestsFinished, "
            "such as {signal: Backlog, query: sum(my_samples_left)}",
            path=".signals",
            reason="FieldValueRequired",
        ),
        Rule(
            cel="!has(self.fallback) || !has(self.fallback.replicas) || "
            "(self.fallback.replicas >= self.replicas.min && self.fallback.replicas <= self.replicas.max)",
            holds=lambda spec: (
                spec.fallback.replicas is None or spec.replicas.min <= spec.fallback.replicas <= spec.replicas.max
            ),
            message="must lie between replicas.min and replicas.max",
            path=".fallback.replicas",
        ),
    )

    target_ref: TargetRef = Field(
        examples=[{"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}],
        description="The workload that is scaled: anything with a scale subresource, in the policy's namespace.",
    )
    objective: Objective = Field(
        description="What matters most. It sets the band, the batch rule and the behavior where they are left out. "
        "LatencySensitive keeps 60 to 70 percent, Balanced 70 to 80, ThroughputSensitive 85 to 95.",
    )
    runtime: OpenName = Field(
        examples=["VLLM"],
        description="The model server, which tells what its metrics are called, such as VLLM, Triton or Generic. "
        "An unknown name gives a condition that lists the known ones.",
    )
    slos: Annotated[list[SLO], Distinct(("signal", "percentile")), Field(max_length=8)] = Field(
        default_factory=list,
        examples=[[{"signal": "TimeToFirstToken", "threshold": "500ms"}]],
        description="What is promised. At least one unless the objective is ThroughputSensitive.",
    )
    replicas: Replicas = Field(examples=[{"min": 1, "max": 16}], description="Bounds of the replica count.")
    batch: Batch | None = Field(
        default=None,
        description="Bounds of the batch cap and how it is set. Left out: only replicas are scaled, and nothing but "
        "/scale is written.",
    )
    mode: Mode = Field(
        default=Mode.ENFORCE,
        description="Enforce: act. Recommend: decide and say so, write nothing to the workload.",
    )
    band: Band | None = Field(
        default=None, description="Utilisation between which nothing is done. Left out: by the objective."
    )
    behavior: Behavior | None = Field(
        default=None, description="How fast replicas may change, as in an HPA. Left out: by the objective."
    )
    fallback: Fallback = Field(default=Fallback(), description="What holds when metrics are missing for too long.")
    signals: Annotated[list[SignalSource], Distinct(("signal",)), Field(max_length=20)] = Field(
        default_factory=list, description="Signals that come from elsewhere than the runtime's preset."
    )
    prometheus: PrometheusSelection | None = Field(
        default=None, description="The Prometheus that answers for this policy. Left out: the operator's default."
    )
    cost: Cost | None = Field(
        default=None, description="What GPU time costs. Left out: wasted GPU time is shown without a price."
    )
    shared_limits: SharedLimits | None = Field(
        default=None, description="What all replicas share. Left out: nothing shared is ever said to be full."
    )
    constraints: Constraints | None = Field(
        default=None, description="Limits that hold whatever the objective. Left out: none."
    )
    backlog: Backlog | None = Field(
        default=None,
        description="For training and batch jobs: work that is to be done by a deadline. The replica count is the "
        "least that finishes it in time, whatever the band. Needs the objective ThroughputSensitive.",
    )
    profile: Profile | None = Field(
        default=None, description="What was measured of the servers beforehand. Left out: all is learned."
    )


def _clip(value: Any, most: int = MESSAGE_LIMIT) -> Any:
    """A string of at most `most` characters that can all be written; anything else as it is."""
    if isinstance(value, str) and not value.isprintable():
        value = "".join(char if char.isprintable() else " " for char in value)
    return value[: most - 1].rstrip() + "…" if isinstance(value, str) and len(value) > most else value


def _capped(value: Any) -> Any:
    return min(value, COUNT_LIMIT) if isinstance(value, int) else value


Message = Annotated[str, Field(max_length=MESSAGE_LIMIT), BeforeValidator(_clip)]
Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
Word = Annotated[str, Field(max_length=63)]
CamelWord = Annotated[str, Field(min_length=1, max_length=63, pattern="^[A-Za-z][A-Za-z0-9]*$")]
Length = Annotated[str, Field(max_length=24)]
Figure = Annotated[str, Field(max_length=10)]
Share100 = Annotated[int, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0, le=COUNT_LIMIT), BeforeValidator(_capped)]
Generation = Annotated[
    int, Field(ge=0, le=2**53)
]  # the API server reads bounds as floats: 2**63 - 1 refuses everything


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(_Model):
    """One aspect of the policy's state, as in every Kubernetes API."""

    type: CamelWord = Field(description="Name of the aspect, such as Ready.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: CamelWord = Field(description="Why, as one word for programs.")
    message: Message = Field(description="Why, as a sentence for people, and what to do.")
    last_transition_time: Time = Field(description="When status last changed.")
    observed_generation: Generation = Field(description="Generation of the policy that was judged.")


class ReplicaStatus(_Model):
    """Replica counts."""

    current: Count | None = Field(default=None, description="Replicas that the target's scale asks for.")
    desired: Count | None = Field(default=None, description="Replicas that the operator wants.")
    ready: Count | None = Field(default=None, description="Pods that are ready.")
    pending: Count | None = Field(default=None, description="Pods that are expected to become ready.")


class BatchStatus(_Model):
    """Batch caps."""

    current: Count | None = Field(default=None, description="Batch cap read back from the pods, the smallest of them.")
    desired: Count | None = Field(default=None, description="Batch cap that the operator wants.")
    capacity: Count | None = Field(default=None, description="Batch size that the servers booted with.")
    source: Word | None = Field(default=None, description="Where current was read.")


class UtilizationStatus(_Model):
    """Utilisation of the ready replicas."""

    percent: Count | None = Field(
        default=None, description="Offered work as percent of what the ready replicas can carry. Above 100 is overload."
    )
    source: Word = Field(description="How it was found: FittedModel, or RequestsOverCap before there is one.")
    message: Message | None = Field(default=None, description="What limits its meaning, where anything does.")


class SLOStatus(_Model):
    """How far one promise is kept."""

    signal: Word = Field(description="The signal that is promised.")
    percentile: Percentile = Field(default=95, description="The percentile that is bounded.")
    threshold: Length | None = Field(default=None, description="The most that the latency may be.")
    min_per_second: Rate | None = Field(default=None, description="The least rate.")
    measured: Length | None = Field(
        default=None, description="The latency percentile over the window, a duration, or a rate per second."
    )
    lower_bound: Length | None = Field(
        default=None, description="Lower bound of the histogram bucket that holds the percentile."
    )
    upper_bound: Length | None = Field(
        default=None, description="Upper bound of the histogram bucket that holds the percentile; +Inf for the last."
    )
    attainment_low_percent: Share100 | None = Field(
        default=None, description="The least share of requests that can have been within the threshold."
    )
    attainment_high_percent: Share100 | None = Field(
        default=None, description="The largest share of requests that can have been within the threshold."
    )
    state: CamelWord = Field(description="A reason of the condition WithinSLO, for this promise alone.")


class MeasureStatus(_Model):
    """One measure of how the GPUs are used."""

    name: CamelWord = Field(description="What is measured, such as ArithmeticIntensity.")
    value: Length = Field(description="The figure.")
    unit: Length = Field(description="Its unit.")
    reference: Length | None = Field(
        default=None, description="What it is compared with, in the same unit: a ridge point, or its own baseline."
    )
    source: Word = Field(description="Where it comes from.")


class AdviceStatus(_Model):
    """Something that a person can do, which the operator cannot."""

    remedy: Message = Field(description="What to do.")
    evidence: Message = Field(description="What was seen that led to it.")


class WasteStatus(_Model):
    """GPU time that is paid for and does no work."""

    gpus: Length = Field(description="GPUs that the ready pods hold, a MIG instance as its share of one.")
    idle_held_percent: Share100 | None = Field(
        default=None, description="Share of their time in which they are held and nothing runs."
    )
    below_possible_percent: Share100 | None = Field(
        default=None, description="Share of their time that is busy below what was possible."
    )
    cost_per_hour: Word | None = Field(
        default=None, description="What both cost in an hour, where spec.cost gives a price."
    )


class QualityStatus(_Model):
    """What the GPUs' busy time is worth, judged from their counters; it says Unknown where these do not tell."""

    class_: CamelWord = Field(
        alias="class", description="Efficient, Mixed, Inefficient, Overloaded, Underused or Unknown."
    )
    score: Share100 | None = Field(default=None, description="How good the use is, from 0 to 100; absent if Unknown.")
    confidence_percent: Share100 = Field(description="How sure the class is.")
    bottleneck: CamelWord | None = Field(default=None, description="What is fullest, such as MemoryBandwidth.")
    evidence: Message | None = Field(default=None, description="What was seen that names the bottleneck.")
    reason: Message | None = Field(default=None, description="Of Unknown: why nothing can be said, and what to do.")
    culprit: Annotated[str, Field(max_length=253)] | None = Field(
        default=None, description="The pod that holds the others back, where one does."
    )
    age: Length | None = Field(default=None, description="Age of the oldest counter that was judged.")
    measures: Annotated[list[MeasureStatus], Distinct(("name",)), Field(max_length=6)] = Field(
        default_factory=list, description="The measures that could be taken."
    )
    wasted: WasteStatus | None = Field(default=None, description="GPU time that does no work.")
    advice: Annotated[list[AdviceStatus], Field(max_length=ADVICE_LIMIT)] = Field(
        default_factory=list, description="What a person can do about it, most important first."
    )


class RuleCost(_Model):
    """What one rule alone costs."""

    rule: Word = Field(
        description="band, slo, peak, queue, min or hold; work for what the work itself takes, unknown for time in "
        "which nobody knew."
    )
    gpu_hours: Length = Field(
        description="GPU-hours that would not have been held, had this rule alone been left out. They do not add up."
    )


class CostStatus(_Model):
    """GPU time of the ready pods and its price. Begins anew with another objective or currency."""

    since: Time = Field(description="When the counting began.")
    until: Time = Field(description="Until when it was counted; it is brought up to date every ten minutes.")
    objective: Word = Field(description="The objective that was followed.")
    gpu_hours: Length = Field(description="GPU-hours that the ready pods held, a MIG instance as its share of one.")
    judged_gpu_hours: Length = Field(
        alias="judgedGPUHours", description="The part of them of which the counters told what it was worth."
    )
    wasted_gpu_hours: Length | None = Field(
        default=None,
        alias="wastedGPUHours",
        description="The part of those that was wasted: held while nothing ran, or busy below what was possible.",
    )
    currency: Word | None = Field(default=None, description="Currency of the prices, where spec.cost gives one.")
    cost: Length | None = Field(default=None, description="What the GPU-hours cost, at the price of their time.")
    wasted_cost: Length | None = Field(default=None, description="What the wasted GPU-hours cost.")
    by_rule: Annotated[list[RuleCost], Distinct(("rule",)), Field(max_length=10)] = Field(
        default_factory=list, description="What the GPU-hours were held for."
    )


class PowerStatus(_Model):
    """Power of the GPUs against constraints.powerWattsPerGPU; the condition WithinPower says what it means."""

    limit_watts: Watts = Field(description="The most that each GPU may draw.")
    measured_watts: Count | None = Field(
        default=None, description="What the GPU that draws most does, as a mean of the last minute; absent if unknown."
    )
    batch_cap: Count | None = Field(
        default=None, description="The largest batch cap that the limit allows, as far as was seen."
    )


class EffectiveScalingRules(_Model):
    """One direction of the behavior in force."""

    stabilization_window_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(description="Window in force.")
    select_policy: SelectPolicy = Field(description="Selection in force.")
    limits: Message = Field(description="Rates in force, in words, such as 100% or 4 pods in 15s.")
    tolerance: Annotated[str, Field(max_length=8)] = Field(description="Tolerance in force.")


class Effective(_Model):
    """What is in force, the objective's defaults included."""

    band: Band = Field(description="The utilisation band.")
    batch_rule: Word = Field(description="How the batch cap is chosen.")
    power_watts_per_gpu: Watts | None = Field(
        default=None, alias="powerWattsPerGPU", description="The most power that each GPU may draw; absent: no limit."
    )
    parallel_efficiency_percent: Share100 | None = Field(
        default=None, description="The least parallel efficiency that workers are added for; absent: any."
    )
    drain_seconds: Annotated[int, Field(ge=1, le=3600)] | None = Field(
        default=None, description="Time in which requests that wait are to be done; absent beside a deadline."
    )
    deadline: Length | None = Field(
        default=None, description="When the backlog is to be done: a duration, or a time in UTC; absent: no deadline."
    )
    scale_up: EffectiveScalingRules = Field(description="How replicas are added.")
    scale_down: EffectiveScalingRules = Field(description="How replicas are removed.")
    fallback: Fallback = Field(description="What holds without metrics.")
    period: Length = Field(description="Time between two decisions.")


class DecisionStatus(_Model):
    """A decision: what was wanted and why."""

    time: Time = Field(description="When it was made.")
    reason: CamelWord = Field(description="Why, as one word for programs.")
    message: Message = Field(description="Why, as a sentence for people.")
    replicas: Count | None = Field(default=None, description="Replicas that it wants.")
    batch_cap: Count | None = Field(default=None, description="Batch cap that it wants.")


class HistoryEntry(DecisionStatus):
    """A decision that changed something."""

    from_replicas: Count | None = Field(default=None, description="Replicas before it.")
    from_batch_cap: Count | None = Field(default=None, description="Batch cap before it.")


class BatchTime(_Model):
    """The time of a batch of one size."""

    size: Figure = Field(description="Requests in the batch.")
    milliseconds: Figure = Field(description="Time of the batch.")


class ModelStatus(_Model):
    """What was learned of the servers and their load, for a process that begins anew, of this version or a newer one.

    What is not required came later, and is for people: `bandkeeper explain` reads it.
    """

    version: Annotated[int, Field(ge=1, le=COUNT_LIMIT)] = Field(description="Version of this summary.")
    target_uid: Word = Field(alias="targetUID", description="The object that it was learned of.")
    peak_time: Word = Field(description="When the peak was.")
    alpha_milliseconds: Length = Field(description="Time of a step.")
    beta_milliseconds: Length = Field(description="More for each request that is in process.")
    delta_milliseconds: Length = Field(description="More for each prompt token that is read.")
    batch_cap: Count = Field(description="The batch cap that work is counted at.")
    peak_work: Length = Field(description="The most work of the time that is remembered, in replicas.")
    largest_rise: Length = Field(description="By how much work rose at most within one cold start, in replicas.")
    requests_per_second: Length | None = Field(default=None, description="Requests that were finished lately.")
    prompt_tokens: Length | None = Field(default=None, description="Prompt tokens of one request, a mean.")
    output_tokens: Length | None = Field(default=None, description="Output tokens of one request, a mean.")
    room: Length | None = Field(
        default=None, description="Requests that a replica can have in process: its cap, or what its KV cache holds."
    )
    margin: Length | None = Field(
        default=None, description="Replicas for each replica of the work to be ready for, as the promises need."
    )
    bound_by: Word | None = Field(default=None, description="The promise that asks for the margin, where one does.")
    error_percent: Count | None = Field(default=None, description="Standard error of the work by these figures.")
    windows: Length | None = Field(default=None, description="Windows of data that were learned from.")
    prefill_tokens: Count | None = Field(
        default=None, description="The most prompt tokens that a step reads, where the servers' flags tell."
    )
    batch_times: Annotated[list[BatchTime], Field(max_length=12)] | None = Field(
        default=None, description="Times of batches by their size, where servers form batches of what waits."
    )


class Status(_Model):
    """What the operator sees and does; live values are metrics."""

    observed_generation: Generation | None = Field(
        default=None, description="Generation of the policy that the status speaks of."
    )
    conditions: Annotated[list[Condition], Distinct(("type",)), Field(max_length=16)] = Field(
        default_factory=list, description="The aspects of the policy's state."
    )
    replicas: ReplicaStatus | None = Field(default=None, description="Replica counts.")
    batch: BatchStatus | None = Field(default=None, description="Batch caps.")
    utilization: UtilizationStatus | None = Field(default=None, description="Utilisation of the ready replicas.")
    slos: Annotated[list[SLOStatus], Distinct(("signal", "percentile")), Field(max_length=8)] = Field(
        default_factory=list, description="How far each promise is kept."
    )
    quality: QualityStatus | None = Field(default=None, description="What the GPUs' busy time is worth.")
    cost: CostStatus | None = Field(default=None, description="What the GPU time cost, and what it was held for.")
    power: PowerStatus | None = Field(
        default=None, description="Power of the GPUs, where constraints.powerWattsPerGPU limits it."
    )
    model: ModelStatus | None = Field(default=None, description="What was learned of the servers and their load.")
    effective: Effective | None = Field(
        default=None, description="What is in force, the objective's defaults included."
    )
    last_decision: DecisionStatus | None = Field(default=None, description="The last decision.")
    history: Annotated[list[HistoryEntry], Field(max_length=HISTORY_LIMIT)] = Field(
        default_factory=list, description="The last decisions that changed something, latest first."
    )
    cold_start: Length | None = Field(
        default=None, description="Time from a pod's creation to its readiness, as measured."
    )

    def stored(self) -> dict[str, Any]:
        """The status as it is stored, in at most `STATUS_LIMIT_BYTES`: old history goes first, then long texts."""
        status: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        while (size := _size(status)) > STATUS_LIMIT_BYTES and status["history"]:
            status["history"].pop()
        for most, prose in ((128, False), (64, False), (32, False), (16, True), (8, True), (16, False), (8, False)):
            if size <= STATUS_LIMIT_BYTES:
                break
            status = _clipped(status, most, prose_only=prose)
            if most < 64 and "model" in status:
                status["model"].pop("batchTimes", None)  # learned again in minutes
            size = _size(status)
        return status


def _size(status: dict[str, Any]) -> int:
    return len(json.dumps(status, ensure_ascii=False, separators=(",", ":")).encode())


_PROSE = frozenset({"message", "evidence", "remedy", "limits"})


def _clipped(value: Any, most: int, *, prose_only: bool) -> Any:
    """Every string, or those for people alone: a word for programs that is cut is another word."""
    if isinstance(value, dict):
        return {
            key: part
            if prose_only and isinstance(part, str) and key not in _PROSE
            else _clipped(part, most, prose_only=prose_only)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [_clipped(part, most, prose_only=prose_only) for part in value]
    return _clip(value, most)
