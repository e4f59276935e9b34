"""Good and bad policy documents, judged by the models and by a real API server: both must say the same of each."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from bandkeeper.api import v1alpha1
from bandkeeper.api.conditions import REASONS, ConditionType

Document = dict[str, Any]

TTFT: Document = {"signal": "TimeToFirstToken", "percentile": 95, "threshold": "500ms"}
DEPLOYMENT: Document = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}
SPEC: Document = {
    "targetRef": DEPLOYMENT,
    "objective": "LatencySensitive",
    "runtime": "VLLM",
    "slos": [TTFT],
    "replicas": {"min": 1, "max": 16},
}
LEFT_OUT = object()


@dataclass(frozen=True, slots=True)
class Case:
    """A document and the verdict: good without `path`, else bad at `path` with a message that holds `message`."""

    name: str
    document: Document
    path: str = ""
    message: str = ""

    @property
    def good(self) -> bool:
        """True where the document must be taken."""
        return not self.path


def a_policy(spec: Document | None = None, *, root: Document | None = None, **changed: Any) -> Document:
    """The ten-line policy, with fields of its spec or root `changed`, or `LEFT_OUT`."""
    document: Document = {
        "apiVersion": "bandkeeper.dev/v1alpha1",
        "kind": "GPUScalingPolicy",
        "metadata": {"name": "chat"},
        "spec": _changed(SPEC if spec is None else spec, changed),
    }
    return _changed(document, root or {})


def _changed(base: Document, changes: Document) -> Document:
    return {key: value for key, value in (copy.deepcopy(base) | changes).items() if value is not LEFT_OUT}


def _slo(**changed: Any) -> list[Document]:
    return [_changed(TTFT, changed)]


def _rate(**changed: Any) -> list[Document]:
    return [_changed({"signal": "GenerationTokens", "minPerSecond": 100}, changed)]


def _batch(adapter: Document | None = None, **changed: Any) -> Document:
    return _changed({"min": 8, "max": 256, "adapter": adapter or {"type": "Annotation"}}, changed)


def _template(**changed: Any) -> Document:
    member = _changed({"container": "server", "argument": "--max-num-seqs"}, changed)
    return {"type": "PodTemplate", "podTemplate": member}


def _http(**changed: Any) -> Document:
    member = _changed({"port": 8000, "path": "/admin/batch", "body": '{"max": {cap}}'}, changed)
    return {"type": "HTTP", "http": member}


def _config_map(**changed: Any) -> Document:
    return {"type": "ConfigMap", "configMap": _changed({"name": "chat-batch"}, changed)}


def _ray(**changed: Any) -> Document:
    member = _changed({"application": "default", "deployment": "Embedder"}, changed)
    return {"type": "RayServe", "rayServe": member}


def _kserve(name: object = "iris") -> Document:
    return {"type": "KServe", "kServe": {"inferenceService": name}}


def _annotation(key: str) -> Document:
    return {"type": "Annotation", "annotation": {"key": key}}


def _triton(**changed: Any) -> Document:
    return {"type": "Triton", "triton": _changed({"model": "resnet50"}, changed)}


def _scale_down(**rules: Any) -> Document:
    return {"scaleDown": rules}


def _job(*, signals: object = LEFT_OUT, **backlog: Any) -> Document:
    """A batch job whose backlog is counted in samples, with the signal that tells it."""
    fields: Document = {"rate": "Samples", "within": "4h"}
    own = [{"signal": "Backlog", "query": "sum(samples_left)"}] if signals is LEFT_OUT else signals
    return a_policy(objective="ThroughputSensitive", slos=LEFT_OUT, signals=own, backlog=_changed(fields, backlog))


def _limits(count: int = 1, **changed: Any) -> Document:
    limits = [
        _changed({"type": "Pods", "value": number, "periodSeconds": 60}, changed) for number in range(1, count + 1)
    ]
    return _scale_down(policies=limits)


GOOD = [
    ("ten lines", a_policy()),
    ("two promises on one signal", a_policy(slos=[TTFT, TTFT | {"percentile": 50}])),
    ("percentile left out", a_policy(slos=_slo(percentile=LEFT_OUT))),
    ("same signal, other percentile", a_policy(slos=[*_slo(percentile=LEFT_OUT), TTFT | {"percentile": 99}])),
    ("throughput without promises", a_policy(objective="ThroughputSensitive", slos=LEFT_OUT)),
    ("throughput with an empty list of promises", a_policy(objective="ThroughputSensitive", slos=[])),
    ("throughput with a rate", a_policy(objective="ThroughputSensitive", slos=_rate())),
    ("balanced", a_policy(objective="Balanced")),
    ("unknown runtime: a condition, not a rejection", a_policy(runtime="HomeMade")),
    ("unknown signal: a condition, not a rejection", a_policy(slos=_slo(signal="HowItFeels"))),
    ("microseconds", a_policy(slos=_slo(threshold="7500us"))),
    ("micro sign", a_policy(slos=_slo(threshold="900µs"))),
    ("Greek mu", a_policy(slos=_slo(threshold="900μs"))),
    ("broken hours", a_policy(slos=_slo(window="0.5h"))),
    ("compound duration", a_policy(slos=_slo(window="1m30s"))),
    ("signed duration", a_policy(slos=_slo(threshold="+5s"))),
    ("duration without leading digit", a_policy(slos=_slo(threshold=".5s"))),
    ("duration without trailing digit", a_policy(slos=_slo(threshold="1.s"))),
    ("longest threshold", a_policy(slos=_slo(threshold="24h"))),
    ("shortest window", a_policy(slos=_slo(window="5s"))),
    ("4.0 where 4 belongs", a_policy(replicas={"min": 1.0, "max": 4.0})),
    ("null where a default is", a_policy(mode=None)),
    ("null in an object with a default", a_policy(fallback={"after": None, "behavior": None})),
    ("null for an optional object", a_policy(batch=None, band=None, behavior=None, prometheus=None)),
    ("null for an optional list", a_policy(signals=None)),
    ("null for the key of a list that has a default", a_policy(slos=_slo(percentile=None))),
    ("min left out", a_policy(replicas={"max": 4})),
    ("min equals max", a_policy(replicas={"min": 4, "max": 4})),
    ("StatefulSet", a_policy(targetRef=DEPLOYMENT | {"kind": "StatefulSet"})),
    ("kind of the core group", a_policy(targetRef=DEPLOYMENT | {"apiVersion": "v1", "kind": "ReplicationController"})),
    ("custom kind", a_policy(targetRef={"apiVersion": "example.x-k8s.io/v1beta1", "kind": "Fleet2", "name": "a.b"})),
    ("recommend", a_policy(mode="Recommend")),
    ("band", a_policy(band={"lowPercent": 60, "highPercent": 70})),
    ("band of one percent", a_policy(band={"lowPercent": 99, "highPercent": 100})),
    ("batch by annotation", a_policy(batch=_batch())),
    ("batch by an annotation of a chosen key", a_policy(batch=_batch(_annotation("bandkeeper.dev/cap")))),
    ("batch by an annotation, member empty", a_policy(batch=_batch({"type": "Annotation", "annotation": {}}))),
    ("batch by argument", a_policy(batch=_batch(_template()))),
    ("batch by variable", a_policy(batch=_batch(_template(argument=LEFT_OUT, env="MAX_NUM_SEQS")))),
    *((f"batch by the preset {preset}",
       a_policy(batch=_batch(_template(argument=LEFT_OUT, preset=preset)))) for preset in v1alpha1.PodTemplatePreset),
    ("batch by request", a_policy(batch=_batch(_http()))),
    ("batch by request, in the path alone", a_policy(batch=_batch(_http(path="/size={cap}", body=LEFT_OUT)))),
    ("batch by request, every placeholder", a_policy(batch=_batch(_http(path="/{namespace}/{pod}?n={cap}")))),
    ("batch by request, other braces in the body", a_policy(batch=_batch(_http(body='{"a": {"b": {cap}}, "c": {}}')))),
    ("batch by request, read back", a_policy(batch=_batch(_http(readBack={"path": "/b", "pointer": "/a~1b/0"})))),
    ("batch by request, the whole answer", a_policy(batch=_batch(_http(readBack={"path": "/b", "pointer": ""})))),
    ("batch by request over TLS", a_policy(batch=_batch(_http(
        scheme="HTTPS", serverName="chat.serving.svc", method="PATCH", expectStatus=[200, 204], credential="chat",
        timeout="100ms", delay="60s", contentType="application/merge-patch+json")))),
    ("batch by request, every status", a_policy(batch=_batch(_http(expectStatus=[])))),
    ("batch by a ConfigMap", a_policy(batch=_batch(_config_map()))),
    ("batch by a ConfigMap's key", a_policy(batch=_batch(_config_map(key="batch_cap.txt")))),
    ("batch by Triton", a_policy(batch=_batch(_triton()))),
    ("batch by Triton, all settings", a_policy(batch=_batch(_triton(
        model="ensemble_1.onnx", httpPort=18000, scheme="HTTPS", serverName="images.vision.svc", credential="admin",
        preferredBatchSizes=[8, 16], maxQueueDelay="500us")))),
    ("batch by Triton, no preferred sizes", a_policy(batch=_batch(_triton(preferredBatchSizes=[])))),
    ("batch by Ray Serve, each pod its own cluster", a_policy(batch=_batch(_ray()))),
    ("batch by a dashboard", a_policy(batch=_batch(_ray(service="ray-head-svc", port=8266, credential="ray-token")))),
    ("batch by a RayService", a_policy(batch=_batch(_ray(key="size", rayService="embed.v2")))),
    ("batch by KServe", a_policy(batch=_batch(_kserve()))),
    ("batch with candidates", a_policy(batch=_batch(candidates=[8, 64, 256]))),
    ("batch min left out", a_policy(batch=_batch(min=LEFT_OUT))),
    ("HPA's behavior", a_policy(behavior={
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "tolerance": "0", "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 15}, {"type": "Pods", "value": 4, "periodSeconds": 15}]},
        "scaleDown": {"stabilizationWindowSeconds": 3600, "selectPolicy": "Disabled", "tolerance": "0.05"}})),
    ("empty behavior", a_policy(behavior={})),
    ("hold", a_policy(fallback={"after": "5m", "behavior": "Hold"})),
    ("fallback replicas", a_policy(fallback={"behavior": "Replicas", "replicas": 16})),
    ("fallback if higher", a_policy(fallback={"after": "30s", "behavior": "ReplicasIfHigher", "replicas": 1})),
    ("signal by metric", a_policy(signals=[{"signal": "RequestsWaiting", "metric": "my:queue_size"}])),
    ("signal by query", a_policy(signals=[{"signal": "RequestsWaiting", "query": 'sum by (pod) (q{a="b"})'}])),
    ("Prometheus by name", a_policy(prometheus={"name": "default"})),
    ("Prometheus by address", a_policy(prometheus={"url": "https://prometheus.monitoring.svc:9090/prom"})),
    ("Prometheus by IPv6 address", a_policy(prometheus={"url": "http://[::1]:9090"})),
    ("cost", a_policy(cost={"pricePerGPUHour": "2.50"})),
    ("cost in another currency", a_policy(cost={"pricePerGPUHour": "0.004", "currency": "EUR"})),
    ("shared limits", a_policy(sharedLimits={"networkBytesPerSecond": 1_250_000_000, "storageBytesPerSecond": 1})),
    ("no shared limit", a_policy(sharedLimits={})),
    ("power with a batch cap", a_policy(batch=_batch(), constraints={"powerWattsPerGPU": 60})),
    ("no constraint", a_policy(constraints={})),
    ("parallel efficiency", a_policy(constraints={"parallelEfficiencyPercent": 75})),
    ("a minute for a queue", a_policy(behavior={"drainSeconds": 60})),
    ("backlog within a time", _job()),
    ("backlog within a month", _job(within="720h")),
    ("backlog by a time", _job(within=LEFT_OUT, by="2026-12-01T06:00:00Z")),
    ("backlog by a leap day", _job(within=LEFT_OUT, by="2028-02-29T23:59:59Z")),
    ("backlog of the requests in the servers", _job(rate="RequestsFinished", signals=[])),
    ("backlog beside a rate", a_policy(objective="ThroughputSensitive", slos=_rate(),
                                       backlog={"rate": "RequestsFinished", "within": "1m"})),
    ("profile", a_policy(profile={"alphaMilliseconds": "20.58"})),
    ("whole profile", a_policy(profile={
        "alphaMilliseconds": "20", "betaMilliseconds": "0.41", "deltaMilliseconds": "0.000001", "kvTokens": 460_000})),
    ("profile as a table", a_policy(profile={"batchTimes": [
        {"size": 1, "milliseconds": "2.13"}, {"size": 65_536, "milliseconds": "999999.5"}]})),
    ("name of 63 characters", a_policy(root={"metadata": {"name": "a" * 63}})),
    ("paused", a_policy(root={"metadata": {"name": "chat", "annotations": {"bandkeeper.dev/paused": "true"}}})),
    ("a status is not taken", a_policy(root={"status": {"coldStart": 5, "lastDecision": {"message": 5}}})),
    ("eight promises", a_policy(slos=[TTFT | {"percentile": 90 + n} for n in range(8)])),
    ("query of the greatest length", a_policy(signals=[{"signal": "Power", "query": "é" * 2048}])),
]  # fmt: skip

BAD = [
    ("no spec", a_policy(root={"spec": LEFT_OUT}), "spec", "must be set"),
    ("spec is null", a_policy(root={"spec": None}), "spec", "must be set"),
    ("spec is a list", a_policy(root={"spec": []}), "spec", "must be an object with the fields targetRef, objective"),
    ("other version", a_policy(root={"apiVersion": "bandkeeper.dev/v9"}),
     "apiVersion", "must be bandkeeper.dev/v1alpha1"),
    ("other kind", a_policy(root={"kind": "GPUScalingPolice"}), "kind", "must be GPUScalingPolicy"),
    ("unknown field of the root", a_policy(root={"specs": {}}), "specs", "write spec"),
    ("unknown field of metadata", a_policy(root={"metadata": {"name": "a", "label": {}}}),
     "metadata.label", "must be left out"),
    ("unknown field of the status", a_policy(root={"status": {"phase": "Fine"}}), "status.phase", "must be left out"),
    ("name of 64 characters", a_policy(root={"metadata": {"name": "a" * 64}}),
     "metadata.name", "must have at most 63 characters"),
    ("name in upper case", a_policy(root={"metadata": {"name": "Chat"}}),
     "metadata.name", "must be lower case letters"),
    ("unknown field", a_policy(replica={"max": 4}), "spec.replica", "write replicas"),
    ("unknown field, null", a_policy(foo=None), "spec.foo", "must be left out"),
    ("field of the Python models", a_policy(target_ref=DEPLOYMENT), "spec.target_ref", "write targetRef"),
    ("unknown field of an entry", a_policy(slos=_slo(treshold="5s")), "spec.slos[0].treshold", "write threshold"),
    ("unknown field deep down", a_policy(behavior=_limits(x=1)),
     "spec.behavior.scaleDown.policies[0].x", "the fields are type, value or periodSeconds"),
    ("no target", a_policy(targetRef=LEFT_OUT),
     "spec.targetRef", "must be set, such as targetRef: {apiVersion: apps/v1"),
    ("target without a kind", a_policy(targetRef=_changed(DEPLOYMENT, {"kind": LEFT_OUT})), "spec.targetRef.kind",
     "must be set, such as kind: Deployment"),
    ("target without a name", a_policy(targetRef=DEPLOYMENT | {"name": ""}),
     "spec.targetRef.name", "must not be empty"),
    ("target in another namespace", a_policy(targetRef=DEPLOYMENT | {"namespace": "other"}), "spec.targetRef.namespace",
     "must be left out"),
    ("target name with a slash", a_policy(targetRef=DEPLOYMENT | {"name": "../chat"}), "spec.targetRef.name",
     "must be an object's name"),
    ("target name with a line end", a_policy(targetRef=DEPLOYMENT | {"name": "chat\n"}), "spec.targetRef.name",
     "must be an object's name"),
    ("target name too long", a_policy(targetRef=DEPLOYMENT | {"name": "a" * 254}), "spec.targetRef.name",
     "must have at most 253 characters"),
    ("target group without a version", a_policy(targetRef=DEPLOYMENT | {"apiVersion": "apps"}),
     "spec.targetRef.apiVersion", "must be group/version, such as apps/v1"),
    ("target kind in lower case", a_policy(targetRef=DEPLOYMENT | {"kind": "deployments"}), "spec.targetRef.kind",
     "must be a kind in CamelCase"),
    ("no objective", a_policy(objective=LEFT_OUT), "spec.objective",
     "must be set to one of LatencySensitive, ThroughputSensitive or Balanced"),
    ("objective in lower case", a_policy(objective="balanced"),
     "spec.objective", "must be one of LatencySensitive, Through"),
    ("no runtime", a_policy(runtime=LEFT_OUT), "spec.runtime", "must be set, such as runtime: VLLM"),
    ("empty runtime", a_policy(runtime=""), "spec.runtime", "must not be empty"),
    ("runtime is null", a_policy(runtime=None), "spec.runtime", "must be set"),
    ("runtime of two words", a_policy(runtime="v LLM"), "spec.runtime", "must be one word in CamelCase"),
    ("runtime too long", a_policy(runtime="A" * 64), "spec.runtime", "must have at most 63 characters"),
    ("no promises", a_policy(slos=LEFT_OUT),
     "spec.slos", "must have at least one entry when objective is LatencySensitive"),
    ("promises are null", a_policy(slos=None),
     "spec.slos", "must have at least one entry when objective is LatencySensitive"),
    ("balanced without promises", a_policy(objective="Balanced", slos=[]), "spec.slos", "must have at least one entry"),
    ("promises are an object", a_policy(slos=TTFT), "spec.slos", "must be a list, not an object"),
    ("a promise is null", a_policy(slos=[None]), "spec.slos[0]", "must be an object"),
    ("nine promises", a_policy(slos=[TTFT | {"percentile": 90 + n} for n in range(9)]),
     "spec.slos", "must have at most 8 entries"),
    ("a promise twice", a_policy(slos=[TTFT, TTFT | {"threshold": "1s"}]), "spec.slos[1]",
     "must not repeat the signal and percentile"),
    ("a promise twice, once by default", a_policy(slos=[TTFT, *_slo(percentile=LEFT_OUT)]),
     "spec.slos[1]", "must not repeat"),
    ("threshold and rate", a_policy(slos=_slo(minPerSecond=5)), "spec.slos[0]", "must have exactly one of threshold"),
    ("neither threshold nor rate", a_policy(slos=_slo(threshold=LEFT_OUT)),
     "spec.slos[0]", "must have exactly one of threshold"),
    ("threshold is null", a_policy(slos=_slo(threshold=None)), "spec.slos[0]", "must have exactly one of threshold"),
    ("percentile 100", a_policy(slos=_slo(percentile=100)), "spec.slos[0].percentile", "must be at most 99"),
    ("percentile 0", a_policy(slos=_slo(percentile=0)), "spec.slos[0].percentile", "must be at least 1"),
    ("percentile as a share", a_policy(slos=_slo(percentile=0.95)),
     "spec.slos[0].percentile", "must be a whole number, not 0.95"),
    ("rate with a percentile", a_policy(slos=_rate(percentile=50)),
     "spec.slos[0].percentile", "must be left out beside"),
    ("rate of 0", a_policy(slos=_rate(minPerSecond=0)), "spec.slos[0].minPerSecond", "must be at least 1"),
    ("rate beyond 64 bits", a_policy(slos=_rate(minPerSecond=10**30)),
     "spec.slos[0].minPerSecond", "must be at most 1000000000"),
    ("days", a_policy(slos=_slo(threshold="1d")),
     "spec.slos[0].threshold", "must be a duration, more than 0s and at most 24h"),
    ("number without a unit", a_policy(slos=_slo(threshold="5")), "spec.slos[0].threshold", "must be a duration"),
    ("bare number", a_policy(slos=_slo(threshold=5)),
     "spec.slos[0].threshold", 'must be a string: write it in quotes, "5"'),
    ("negative duration", a_policy(slos=_slo(threshold="-5s")),
     "spec.slos[0].threshold", "must be a duration, more than 0s"),
    ("zero duration", a_policy(slos=_slo(threshold="0")), "spec.slos[0].threshold", "must be a duration, more than 0s"),
    ("duration that rounds to zero", a_policy(slos=_slo(threshold="0.1ns")),
     "spec.slos[0].threshold", "must be a duration"),
    ("empty duration", a_policy(slos=_slo(threshold="")), "spec.slos[0].threshold", "must be a duration"),
    ("unit without a number", a_policy(slos=_slo(threshold=".s")), "spec.slos[0].threshold", "must be a duration"),
    ("duration with a space", a_policy(slos=_slo(threshold="500 ms")), "spec.slos[0].threshold", "must be a duration"),
    ("duration with a line end", a_policy(slos=_slo(threshold="5s\n")), "spec.slos[0].threshold", "must be a duration"),
    ("duration in other digits", a_policy(slos=_slo(threshold="٥s")), "spec.slos[0].threshold", "must be a duration"),
    ("duration in words", a_policy(slos=_slo(threshold="fast")), "spec.slos[0].threshold", "must be a duration"),
    ("duration too long", a_policy(slos=_slo(threshold="24h1ns")), "spec.slos[0].threshold", "at most 24h"),
    ("duration beyond 64 bits", a_policy(slos=_slo(threshold="9223372036854775808ns")),
     "spec.slos[0].threshold", "at most 24h"),
    ("duration of too many characters", a_policy(slos=_slo(threshold="1s" * 13)), "spec.slos[0].threshold",
     "must have at most 24 characters"),
    ("window too short", a_policy(slos=_slo(window="4999ms")),
     "spec.slos[0].window", "must be a duration, from 5s to 1h"),
    ("window too long", a_policy(slos=_slo(window="1.01h")),
     "spec.slos[0].window", "must be a duration, from 5s to 1h"),
    ("number in quotes", a_policy(replicas={"min": "1", "max": 4}), "spec.replicas.min",
     "must be a whole number without quotes: write 1"),
    ("boolean for a number", a_policy(replicas={"max": True}), "spec.replicas.max", "must be a whole number, not true"),
    ("broken number", a_policy(replicas={"max": 4.5}), "spec.replicas.max", "must be a whole number, not 4.5"),
    ("no max", a_policy(replicas={"min": 1}), "spec.replicas.max", "must be set, such as max: 16"),
    ("max is null", a_policy(replicas={"max": None}), "spec.replicas.max", "must be set, such as max: 16"),
    ("scale to zero", a_policy(replicas={"min": 0, "max": 4}), "spec.replicas.min",
     "must be at least 1: scale to zero needs an activation source and is planned"),
    ("negative min", a_policy(replicas={"min": -1, "max": 4}), "spec.replicas.min", "must be at least 0"),
    ("min above max", a_policy(replicas={"min": 5, "max": 4}), "spec.replicas.max", "must be at least replicas.min"),
    ("too many replicas", a_policy(replicas={"max": 10_001}), "spec.replicas.max", "must be at most 10000"),
    ("band inverted", a_policy(band={"lowPercent": 70, "highPercent": 60}),
     "spec.band.lowPercent", "must be less than highPercent"),
    ("band empty", a_policy(band={"lowPercent": 70, "highPercent": 70}),
     "spec.band.lowPercent", "must be less than highPercent"),
    ("half a band", a_policy(band={"lowPercent": 70}), "spec.band.highPercent", "must be set, such as highPercent: 70"),
    ("band from 0", a_policy(band={"lowPercent": 0, "highPercent": 60}), "spec.band.lowPercent", "must be at least 1"),
    ("band above 100", a_policy(band={"lowPercent": 60, "highPercent": 101}),
     "spec.band.highPercent", "must be at most 100"),
    ("band in percent signs", a_policy(band={"lowPercent": "60%", "highPercent": 70}), "spec.band.lowPercent",
     'must be a whole number, not "60%"'),
    ("unknown mode", a_policy(mode="DryRun"), "spec.mode", "must be one of Enforce or Recommend"),
    ("batch min above max", a_policy(batch=_batch(min=512)), "spec.batch.max", "must be at least batch.min"),
    ("batch without max", a_policy(batch=_batch(max=LEFT_OUT)), "spec.batch.max", "must be set, such as max: 256"),
    ("batch of 0", a_policy(batch=_batch(min=0)), "spec.batch.min", "must be at least 1"),
    ("batch without adapter", a_policy(batch=_batch() | {"adapter": None}), "spec.batch.adapter",
     "must be set, such as adapter: {type: Annotation}"),
    ("candidate outside", a_policy(batch=_batch(candidates=[4, 8])),
     "spec.batch.candidates", "must all lie between batch.min"),
    ("candidate twice", a_policy(batch=_batch(candidates=[8, 8])),
     "spec.batch.candidates[1]", "must not repeat the value"),
    ("no candidates", a_policy(batch=_batch(candidates=[])), "spec.batch.candidates", "must have at least one entry"),
    ("too many candidates", a_policy(batch=_batch(candidates=list(range(8, 41)))), "spec.batch.candidates",
     "must have at most 32 entries"),
    ("candidate in quotes", a_policy(batch=_batch(candidates=["8"])),
     "spec.batch.candidates[0]", "without quotes: write 8"),
    ("adapter without type", a_policy(batch=_batch({"annotation": {}})), "spec.batch.adapter.type",
     "must be set to one of Annotation, PodTemplate, "),
    ("unknown adapter", a_policy(batch=_batch({"type": "SSH"})), "spec.batch.adapter.type",
     "must be one of Annotation, PodTemplate, "),
    ("adapter without its member", a_policy(batch=_batch({"type": "PodTemplate"})), "spec.batch.adapter.podTemplate",
     "must be set when type is PodTemplate"),
    ("adapter with the other's member", a_policy(batch=_batch({"type": "PodTemplate", "annotation": {}} | _template())),
     "spec.batch.adapter.annotation", "must be left out unless type is Annotation"),
    ("annotation adapter with a pod template", a_policy(batch=_batch(_template() | {"type": "Annotation"})),
     "spec.batch.adapter.podTemplate", "must be left out unless type is PodTemplate"),
    ("annotation of someone else", a_policy(batch=_batch(_annotation("kubernetes.io/x"))),
     "spec.batch.adapter.annotation.key", "must be an annotation key that is the operator's to write"),
    ("variable and argument", a_policy(batch=_batch(_template(env="A"))), "spec.batch.adapter.podTemplate",
     "must have exactly one of preset"),
    ("neither variable nor argument", a_policy(batch=_batch(_template(argument=LEFT_OUT))),
     "spec.batch.adapter.podTemplate", "must have exactly one of preset"),
    ("preset and argument", a_policy(batch=_batch(_template(preset="VLLM"))), "spec.batch.adapter.podTemplate",
     "must have exactly one of preset"),
    ("preset, variable and argument", a_policy(batch=_batch(_template(preset="VLLM", env="A"))),
     "spec.batch.adapter.podTemplate", "must have exactly one of preset"),
    ("unknown preset", a_policy(batch=_batch(_template(argument=LEFT_OUT, preset="vLLM"))),
     "spec.batch.adapter.podTemplate.preset", "must be one of VLLM, VLLMActive, SGLang, TGI or TensorRTLLM"),
    ("argument with its value", a_policy(batch=_batch(_template(argument="--max-num-seqs=64"))),
     "spec.batch.adapter.podTemplate.argument", "must be a flag without its value"),
    ("variable with its value", a_policy(batch=_batch(_template(argument=LEFT_OUT, env="A=64"))),
     "spec.batch.adapter.podTemplate.env", "must be the name of an environment variable"),
    ("HTTP without its member", a_policy(batch=_batch({"type": "HTTP"})), "spec.batch.adapter.http",
     "must be set when type is HTTP, such as {port: 8000"),
    ("a request beside an annotation", a_policy(batch=_batch(_http() | {"type": "Annotation"})),
     "spec.batch.adapter.http", "must be left out unless type is HTTP"),
    ("a request without a port", a_policy(batch=_batch(_http(port=LEFT_OUT))), "spec.batch.adapter.http.port",
     "must be set, such as port: 8000"),
    ("a request to port 0", a_policy(batch=_batch(_http(port=0))), "spec.batch.adapter.http.port",
     "must be at least 1"),
    ("a request to a named port", a_policy(batch=_batch(_http(port="http"))), "spec.batch.adapter.http.port",
     "must be a whole number"),
    ("a request to a URL", a_policy(batch=_batch(_http(path="http://chat:8000/admin?n={cap}"))),
     "spec.batch.adapter.http.path", "must be a path on the pod's server that begins with /"),
    ("a path with a space", a_policy(batch=_batch(_http(path="/a b"))), "spec.batch.adapter.http.path",
     "must be a path on the pod's server"),
    ("a path with a line end", a_policy(batch=_batch(_http(path="/a\n"))), "spec.batch.adapter.http.path",
     "must be a path on the pod's server"),
    ("a path with an unknown placeholder", a_policy(batch=_batch(_http(path="/{capacity}"))),
     "spec.batch.adapter.http.path", "no placeholders but {cap}, {pod} and {namespace}"),
    ("a body with an unknown placeholder", a_policy(batch=_batch(_http(body='{"max": {cap}, "was": {capacity}}'))),
     "spec.batch.adapter.http.body", "must have no placeholders but {cap}, {pod} and {namespace}"),
    ("a placeholder made of two", a_policy(batch=_batch(_http(body="{cap}{c{pod}ap}"))),
     "spec.batch.adapter.http.body", "must have no placeholders but"),
    ("a body too long", a_policy(batch=_batch(_http(body="{cap}" + "a" * 2044))),
     "spec.batch.adapter.http.body", "must have at most 2048 characters"),
    ("a body as an object", a_policy(batch=_batch(_http(body={"max": 8}))), "spec.batch.adapter.http.body",
     "must be a string"),
    ("a request without the cap", a_policy(batch=_batch(_http(body='{"max": 16}'))), "spec.batch.adapter.http",
     "must have {cap} in path or body"),
    ("a request that reads", a_policy(batch=_batch(_http(method="GET"))), "spec.batch.adapter.http.method",
     "must be one of POST, PUT or PATCH"),
    ("a scheme in lower case", a_policy(batch=_batch(_http(scheme="https"))), "spec.batch.adapter.http.scheme",
     "must be one of HTTP or HTTPS"),
    ("a server name without TLS", a_policy(batch=_batch(_http(serverName="chat"))),
     "spec.batch.adapter.http.serverName", "must be left out unless scheme is HTTPS"),
    ("a server name with a port", a_policy(batch=_batch(_http(scheme="HTTPS", serverName="chat:8000"))),
     "spec.batch.adapter.http.serverName", "must be a host name"),
    ("an expected failure", a_policy(batch=_batch(_http(expectStatus=[404]))),
     "spec.batch.adapter.http.expectStatus[0]", "must be at most 299"),
    ("a status twice", a_policy(batch=_batch(_http(expectStatus=[200, 200]))),
     "spec.batch.adapter.http.expectStatus[1]", "must not repeat the value"),
    ("a credential by its file", a_policy(batch=_batch(_http(credential="/secrets/chat"))),
     "spec.batch.adapter.http.credential", "must be the name of a credential in the operator's configuration"),
    ("a timeout of a minute", a_policy(batch=_batch(_http(timeout="1m"))), "spec.batch.adapter.http.timeout",
     "must be a duration, from 100ms to 10s"),
    ("a delay of an hour", a_policy(batch=_batch(_http(delay="1h"))), "spec.batch.adapter.http.delay",
     "must be a duration, from 0s to 60s"),
    ("a negative delay", a_policy(batch=_batch(_http(delay="-1s"))), "spec.batch.adapter.http.delay",
     "must be a duration, from 0s to 60s"),
    ("read back with the cap", a_policy(batch=_batch(_http(readBack={"path": "/{cap}"}))),
     "spec.batch.adapter.http.readBack.path", "no placeholders but {pod} and {namespace}"),
    ("read back nowhere", a_policy(batch=_batch(_http(readBack={"pointer": "/a"}))),
     "spec.batch.adapter.http.readBack.path", "must be set, such as path: /admin/batch"),
    ("a pointer in dots", a_policy(batch=_batch(_http(readBack={"path": "/a", "pointer": "limits.max"}))),
     "spec.batch.adapter.http.readBack.pointer", "must be a JSON pointer"),
    ("a content type with a charset", a_policy(batch=_batch(_http(contentType="text/plain; charset=utf-8"))),
     "spec.batch.adapter.http.contentType", "must be a media type without parameters"),
    ("ConfigMap without its member", a_policy(batch=_batch({"type": "ConfigMap"})), "spec.batch.adapter.configMap",
     "must be set when type is ConfigMap, such as {name: chat-batch}"),
    ("a ConfigMap beside a request", a_policy(batch=_batch(_http() | _config_map() | {"type": "HTTP"})),
     "spec.batch.adapter.configMap", "must be left out unless type is ConfigMap"),
    ("a ConfigMap without a name", a_policy(batch=_batch(_config_map(name=LEFT_OUT))),
     "spec.batch.adapter.configMap.name", "must be set, such as name: chat-batch"),
    ("a ConfigMap in another namespace", a_policy(batch=_batch(_config_map(name="other/caps"))),
     "spec.batch.adapter.configMap.name", "must be an object's name"),
    ("a key with a slash", a_policy(batch=_batch(_config_map(key="a/b"))), "spec.batch.adapter.configMap.key",
     "must be a key of a ConfigMap"),
    ("Ray Serve without its member", a_policy(batch=_batch({"type": "RayServe"})), "spec.batch.adapter.rayServe",
     "must be set when type is RayServe"),
    ("KServe without its member", a_policy(batch=_batch({"type": "KServe"})), "spec.batch.adapter.kServe",
     "must be set when type is KServe"),
    ("Ray Serve with KServe's member", a_policy(batch=_batch(_ray() | {"kServe": {"inferenceService": "iris"}})),
     "spec.batch.adapter.kServe", "must be left out unless type is KServe"),
    ("KServe with Ray Serve's member", a_policy(batch=_batch(_ray() | _kserve())),
     "spec.batch.adapter.rayServe", "must be left out unless type is RayServe"),
    ("no Ray Serve application", a_policy(batch=_batch(_ray(application=LEFT_OUT))),
     "spec.batch.adapter.rayServe.application", "must be set, such as application: default"),
    ("no Ray Serve deployment", a_policy(batch=_batch(_ray(deployment=LEFT_OUT))),
     "spec.batch.adapter.rayServe.deployment", "must be set, such as deployment: Embedder"),
    ("a deployment with its application", a_policy(batch=_batch(_ray(deployment="default#Embedder"))),
     "spec.batch.adapter.rayServe.deployment", "must be a name as in the Serve config"),
    ("a dashboard elsewhere", a_policy(batch=_batch(_ray(service="ray.example.com"))),
     "spec.batch.adapter.rayServe.service", "must be the name of a Service beside the policy"),
    ("a port of 0", a_policy(batch=_batch(_ray(port=0))), "spec.batch.adapter.rayServe.port", "must be at least 1"),
    ("no InferenceService", a_policy(batch=_batch(_kserve(None))), "spec.batch.adapter.kServe.inferenceService",
     "must be set, such as inferenceService: iris"),
    ("InferenceService in upper case", a_policy(batch=_batch(_kserve("Iris"))),
     "spec.batch.adapter.kServe.inferenceService", "must be an object's name"),
    ("no container", a_policy(batch=_batch(_template(container=LEFT_OUT))), "spec.batch.adapter.podTemplate.container",
     "must be set, such as container: server"),
    ("container in upper case", a_policy(batch=_batch(_template(container="Server"))),
     "spec.batch.adapter.podTemplate.container", "must be a container's name"),
    ("Triton without its member", a_policy(batch=_batch({"type": "Triton"})), "spec.batch.adapter.triton",
     "must be set when type is Triton, such as {model: resnet50}"),
    ("Triton's member of another type", a_policy(batch=_batch(_triton() | {"type": "Annotation"})),
     "spec.batch.adapter.triton", "must be left out unless type is Triton"),
    ("Triton without a model", a_policy(batch=_batch(_triton(model=LEFT_OUT))), "spec.batch.adapter.triton.model",
     "must be set, such as model: resnet50"),
    ("model as a path", a_policy(batch=_batch(_triton(model="../load"))), "spec.batch.adapter.triton.model",
     "must be the name of a model as Triton knows it"),
    ("port 0", a_policy(batch=_batch(_triton(httpPort=0))), "spec.batch.adapter.triton.httpPort", "must be at least 1"),
    ("port too large", a_policy(batch=_batch(_triton(httpPort=65_536))), "spec.batch.adapter.triton.httpPort",
     "must be at most 65535"),
    ("port by name", a_policy(batch=_batch(_triton(httpPort="http"))), "spec.batch.adapter.triton.httpPort",
     'must be a whole number, not "http"'),
    ("server name without TLS", a_policy(batch=_batch(_triton(serverName="images"))),
     "spec.batch.adapter.triton.serverName", "must be left out unless scheme is HTTPS"),
    ("credential as a file", a_policy(batch=_batch(_triton(credential="/var/run/token"))),
     "spec.batch.adapter.triton.credential", "must be the name of a credential"),
    ("preferred size twice", a_policy(batch=_batch(_triton(preferredBatchSizes=[8, 8]))),
     "spec.batch.adapter.triton.preferredBatchSizes[1]", "must not repeat the value"),
    ("preferred size of 0", a_policy(batch=_batch(_triton(preferredBatchSizes=[0]))),
     "spec.batch.adapter.triton.preferredBatchSizes[0]", "must be at least 1"),
    ("queue delay too long", a_policy(batch=_batch(_triton(maxQueueDelay="11s"))),
     "spec.batch.adapter.triton.maxQueueDelay", "10s"),
    ("queue delay in microseconds without a unit", a_policy(batch=_batch(_triton(maxQueueDelay="500"))),
     "spec.batch.adapter.triton.maxQueueDelay", "must be a duration"),
    ("stabilisation too long", a_policy(behavior=_scale_down(stabilizationWindowSeconds=3601)),
     "spec.behavior.scaleDown.stabilizationWindowSeconds", "must be at most 3600"),
    ("stabilisation as a duration", a_policy(behavior=_scale_down(stabilizationWindowSeconds="5m")),
     "spec.behavior.scaleDown.stabilizationWindowSeconds", 'must be a whole number, not "5m"'),
    ("unknown selection", a_policy(behavior=_scale_down(selectPolicy="Avg")), "spec.behavior.scaleDown.selectPolicy",
     "must be one of Max, Min or Disabled"),
    ("no policies", a_policy(behavior=_scale_down(policies=[])),
     "spec.behavior.scaleDown.policies", "must have at least one entry"),
    ("too many policies", a_policy(behavior=_limits(11)),
     "spec.behavior.scaleDown.policies", "must have at most 10 entries"),
    ("policy of 0 pods", a_policy(behavior=_limits(value=0)),
     "spec.behavior.scaleDown.policies[0].value", "must be at least 1"),
    ("policy with a long period", a_policy(behavior=_limits(periodSeconds=1801)),
     "spec.behavior.scaleDown.policies[0].periodSeconds", "must be at most 1800"),
    ("policy of an unknown type", a_policy(behavior=_limits(type="GPUs")),
     "spec.behavior.scaleDown.policies[0].type", "must be one of Pods or Percent"),
    ("tolerance as a number", a_policy(behavior=_scale_down(tolerance=0.05)), "spec.behavior.scaleDown.tolerance",
     'must be a string: write it in quotes, "0.05"'),
    ("tolerance above 1", a_policy(behavior=_scale_down(tolerance="1.5")), "spec.behavior.scaleDown.tolerance",
     "must be a share from 0 to 1"),
    ("tolerance in percent", a_policy(behavior=_scale_down(tolerance="5%")), "spec.behavior.scaleDown.tolerance",
     "must be a share from 0 to 1"),
    ("fallback without replicas", a_policy(fallback={"behavior": "Replicas"}), "spec.fallback.replicas",
     "must be set when behavior is Replicas or ReplicasIfHigher"),
    ("fallback that needs no replicas", a_policy(fallback={"replicas": 4}), "spec.fallback.replicas",
     "must be left out when behavior is Hold"),
    ("fallback above max", a_policy(fallback={"behavior": "Replicas", "replicas": 17}), "spec.fallback.replicas",
     "must lie between replicas.min and replicas.max"),
    ("fallback below min", a_policy(replicas={"min": 2, "max": 4}, fallback={"behavior": "Replicas", "replicas": 1}),
     "spec.fallback.replicas", "must lie between replicas.min and replicas.max"),
    ("fallback at once", a_policy(fallback={"after": "0s"}), "spec.fallback.after", "must be a duration, more than 0s"),
    ("unknown fallback", a_policy(fallback={"behavior": "Zero"}), "spec.fallback.behavior",
     "must be one of Hold, ReplicasIfHigher or Replicas"),
    ("signal without a source", a_policy(signals=[{"signal": "Power"}]),
     "spec.signals[0]", "must have exactly one of metric"),
    ("signal with two sources", a_policy(signals=[{"signal": "Power", "metric": "a", "query": "a"}]), "spec.signals[0]",
     "must have exactly one of metric"),
    ("signal twice", a_policy(signals=[{"signal": "Power", "metric": "a"}, {"signal": "Power", "query": "a"}]),
     "spec.signals[1]", "must not repeat the signal"),
    ("metric with a selector", a_policy(signals=[{"signal": "Power", "metric": 'a{b="c"}'}]), "spec.signals[0].metric",
     "for PromQL write query"),
    ("empty query", a_policy(signals=[{"signal": "Power", "query": ""}]), "spec.signals[0].query", "must not be empty"),
    ("query too long", a_policy(signals=[{"signal": "Power", "query": "a" * 2049}]), "spec.signals[0].query",
     "must have at most 2048 characters"),
    ("too many signals", a_policy(signals=[{"signal": f"S{n}", "metric": "a"} for n in range(21)]), "spec.signals",
     "must have at most 20 entries"),
    ("Prometheus without an address", a_policy(prometheus={}), "spec.prometheus", "must have exactly one of name"),
    ("Prometheus twice", a_policy(prometheus={"name": "a", "url": "http://a"}),
     "spec.prometheus", "must have exactly one of name"),
    ("Prometheus with a name of two words", a_policy(prometheus={"name": "my prometheus"}),
     "spec.prometheus.name", "must be the name of a Prometheus"),
    ("Prometheus by a bare host", a_policy(prometheus={"url": "prometheus:9090"}),
     "spec.prometheus.url", "must be http:// or https://"),
    ("Prometheus with credentials", a_policy(prometheus={"url": "http://me:secret@prometheus:9090"}),
     "spec.prometheus.url", "credentials belong in the operator's configuration"),
    ("price as a number", a_policy(cost={"pricePerGPUHour": 2.5}), "spec.cost.pricePerGPUHour",
     'must be a string: write it in quotes, "2.5"'),
    ("price with its currency", a_policy(cost={"pricePerGPUHour": "$2.50"}), "spec.cost.pricePerGPUHour",
     "must be an amount as a string, such as '2.50'"),
    ("cost without a price", a_policy(cost={"currency": "USD"}), "spec.cost.pricePerGPUHour", "must be set"),
    ("currency as a sign", a_policy(cost={"pricePerGPUHour": "2.50", "currency": "usd"}), "spec.cost.currency",
     "must be a currency of three capital letters"),
    ("shared limit of 0", a_policy(sharedLimits={"networkBytesPerSecond": 0}),
     "spec.sharedLimits.networkBytesPerSecond", "1"),
    ("shared limit as a quantity", a_policy(sharedLimits={"storageBytesPerSecond": "2Gi"}),
     "spec.sharedLimits.storageBytesPerSecond", "must be a whole number"),
    ("power without a batch cap", a_policy(constraints={"powerWattsPerGPU": 60}), "spec.batch",
     "must be set when constraints.powerWattsPerGPU is"),
    ("power of 0", a_policy(batch=_batch(), constraints={"powerWattsPerGPU": 0}),
     "spec.constraints.powerWattsPerGPU", "must be at least 1"),
    ("power beyond any GPU", a_policy(batch=_batch(), constraints={"powerWattsPerGPU": 10_001}),
     "spec.constraints.powerWattsPerGPU", "must be at most 10000"),
    ("power with its unit", a_policy(batch=_batch(), constraints={"powerWattsPerGPU": "60W"}),
     "spec.constraints.powerWattsPerGPU", 'must be a whole number, not "60W"'),
    ("power in other letters", a_policy(batch=_batch(), constraints={"powerWattsPerGpu": 60}),
     "spec.constraints.powerWattsPerGpu", "write powerWattsPerGPU"),
    ("parallel efficiency above 100", a_policy(constraints={"parallelEfficiencyPercent": 101}),
     "spec.constraints.parallelEfficiencyPercent", "must be at most 100"),
    ("parallel efficiency as a share", a_policy(constraints={"parallelEfficiencyPercent": 0.75}),
     "spec.constraints.parallelEfficiencyPercent", "must be a whole number, not 0.75"),
    ("no time for a queue", a_policy(behavior={"drainSeconds": 0}), "spec.behavior.drainSeconds", "must be at least 5"),
    ("two hours for a queue", a_policy(behavior={"drainSeconds": 7200}),
     "spec.behavior.drainSeconds", "must be at most 3600"),
    ("time for a queue as a duration", a_policy(behavior={"drainSeconds": "5m"}),
     "spec.behavior.drainSeconds", 'must be a whole number, not "5m"'),
    ("backlog without a deadline", _job(within=LEFT_OUT), "spec.backlog", "must have exactly one of within"),
    ("backlog with two deadlines", _job(by="2026-12-01T06:00:00Z"), "spec.backlog", "must have exactly one of within"),
    ("backlog without a rate", _job(rate=LEFT_OUT), "spec.backlog.rate", "must be set to one of RequestsFinished"),
    ("backlog in seconds", _job(rate="QueueTime"), "spec.backlog.rate", "must be one of RequestsFinished"),
    ("backlog at once", _job(within="59s"), "spec.backlog.within", "must be a duration, from 1m to 720h"),
    ("backlog in days", _job(within="3d"), "spec.backlog.within", "must be a duration, from 1m to 720h"),
    ("backlog by a day", _job(within=LEFT_OUT, by="2026-12-01"), "spec.backlog.by", "must be a time in UTC"),
    ("backlog by local time", _job(within=LEFT_OUT, by="2026-12-01T06:00:00"), "spec.backlog.by", "must be a time"),
    ("backlog by the 30th of February", _job(within=LEFT_OUT, by="2026-02-30T06:00:00Z"),
     "spec.backlog.by", "must be a time in UTC, such as 2026-12-01T06:00:00Z"),
    ("backlog by the leap day of a common year", _job(within=LEFT_OUT, by="2027-02-29T06:00:00Z"),
     "spec.backlog.by", "must be a time in UTC"),
    ("backlog by hour 24", _job(within=LEFT_OUT, by="2026-12-01T24:00:00Z"), "spec.backlog.by", "must be a time"),
    ("backlog that latency matters to", a_policy(backlog={"rate": "RequestsFinished", "within": "1h"}),
     "spec.objective", "must be ThroughputSensitive beside backlog"),
    ("backlog of samples that nobody counts", _job(signals=[]), "spec.signals", "must give the signal Backlog"),
    ("backlog in other letters", _job(dueBy="5m"), "spec.backlog.dueBy", "must be left out"),
    ("empty profile", a_policy(profile={}), "spec.profile", "must have one of alphaMilliseconds"),
    ("profile in two ways", a_policy(profile={"alphaMilliseconds": "20", "batchTimes": [
        {"size": 1, "milliseconds": "2"}]}), "spec.profile", "must have one of alphaMilliseconds"),
    ("beta beside a table", a_policy(profile={"betaMilliseconds": "20", "batchTimes": [
        {"size": 1, "milliseconds": "2"}]}), "spec.profile.betaMilliseconds", "must go with alphaMilliseconds"),
    ("step time of 0", a_policy(profile={"alphaMilliseconds": "0.0"}), "spec.profile.alphaMilliseconds",
     "must be milliseconds above 0"),
    ("step time with its unit", a_policy(profile={"alphaMilliseconds": "20ms"}), "spec.profile.alphaMilliseconds",
     "must be milliseconds above 0"),
    ("step time as a number", a_policy(profile={"alphaMilliseconds": 20.58}), "spec.profile.alphaMilliseconds",
     "must be a string"),
    ("empty table", a_policy(profile={"batchTimes": []}), "spec.profile.batchTimes", "must have at least one entry"),
    ("a size twice", a_policy(profile={"batchTimes": [{"size": 1, "milliseconds": "2"}] * 2}),
     "spec.profile.batchTimes[1]", "must not repeat the size"),
    ("no size", a_policy(profile={"batchTimes": [{"milliseconds": "2"}]}),
     "spec.profile.batchTimes[0].size", "must be set"),
    ("KV cache of nothing", a_policy(profile={"alphaMilliseconds": "20", "kvTokens": 0}), "spec.profile.kvTokens",
     "must be at least 16"),
    ("Prometheus as a string", a_policy(prometheus="http://prometheus:9090"), "spec.prometheus",
     "must be an object with the fields name, url"),
]  # fmt: skip

CASES = [*(Case(*row) for row in GOOD), *(Case(*row) for row in BAD)]


def a_full_status(letter: str = "m") -> v1alpha1.Status:
    """A status with every field and list as full as it may be; messages are all of `letter`."""
    message, count = letter * v1alpha1.MESSAGE_LIMIT, v1alpha1.COUNT_LIMIT
    reason = max((word for words in REASONS.values() for word in words), key=len)
    time, length = "2026-01-01T00:00:00Z", "123h59m59.999s"
    limits = v1alpha1.EffectiveScalingRules(
        stabilization_window_seconds=3600,
        select_policy=v1alpha1.SelectPolicy.DISABLED,
        limits=message,
        tolerance="0.0001",
    )
    decision: Document = {"time": time, "reason": reason, "message": message, "replicas": count, "batch_cap": count}
    return v1alpha1.Status(
        observed_generation=2**53,
        conditions=[
            v1alpha1.Condition(
                type=kind.value,
                status=v1alpha1.ConditionStatus.UNKNOWN,
                reason=reason,
                message=message,
                last_transition_time=time,
                observed_generation=2**53,
            )
            for kind in ConditionType
        ],
        replicas=v1alpha1.ReplicaStatus(current=count, desired=count, ready=count, pending=count),
        batch=v1alpha1.BatchStatus(current=count, desired=count, capacity=count, source="ReadBack"),
        utilization=v1alpha1.UtilizationStatus(percent=count, source="RequestsOverCap", message=message),
        slos=[
            v1alpha1.SLOStatus(
                signal="KVCacheUtilization",
                percentile=90 + number,
                threshold=length,
                measured=length,
                lower_bound=length,
                upper_bound=length,
                attainment_low_percent=100,
                attainment_high_percent=100,
                state="TooFewRequests",
            )
            for number in range(8)
        ],
        quality=v1alpha1.QualityStatus(
            class_="Inefficient",
            score=100,
            confidence_percent=100,
            bottleneck=reason,
            evidence=message,
            reason=message,
            culprit="p" * 253,
            age=length,
            measures=[
                v1alpha1.MeasureStatus(
                    name=f"Measure{number}", value=length, unit="FLOP/byte", reference=length, source="s" * 63
                )
                for number in range(6)
            ],
            wasted=v1alpha1.WasteStatus(
                gpus=length, idle_held_percent=100, below_possible_percent=100, cost_per_hour="9999999.99 USD"
            ),
            advice=[v1alpha1.AdviceStatus(remedy=message, evidence=message)] * v1alpha1.ADVICE_LIMIT,
        ),
        cost=v1alpha1.CostStatus(
            since=time,
            until=time,
            objective="ThroughputSensitive",
            gpu_hours=length,
            judged_gpu_hours=length,
            wasted_gpu_hours=length,
            currency="USD",
            cost=length,
            wasted_cost=length,
            by_rule=[v1alpha1.RuleCost(rule=f"rule{number}", gpu_hours=length) for number in range(10)],
        ),
        power=v1alpha1.PowerStatus(limit_watts=10_000, measured_watts=count, batch_cap=count),
        model=v1alpha1.ModelStatus(
            version=1,
            target_uid=reason,
            peak_time=time,
            alpha_milliseconds=length,
            beta_milliseconds=length,
            delta_milliseconds=length,
            batch_cap=count,
            peak_work=length,
            largest_rise=length,
            requests_per_second=length,
            prompt_tokens=length,
            output_tokens=length,
            room=length,
            margin=length,
            bound_by=reason,
            error_percent=count,
            windows=length,
            batch_times=[v1alpha1.BatchTime(size="9.999e+300", milliseconds="9.999e+300")] * 12,
        ),
        effective=v1alpha1.Effective(
            band=v1alpha1.Band(low_percent=60, high_percent=70),
            batch_rule="Continuous",
            power_watts_per_gpu=10_000,
            parallel_efficiency_percent=100,
            drain_seconds=3600,
            deadline="2026-12-01T06:00:00Z",
            scale_up=limits,
            scale_down=limits,
            fallback=v1alpha1.Fallback(behavior=v1alpha1.FallbackBehavior.REPLICAS, replicas=10_000),
            period=length,
        ),
        last_decision=v1alpha1.DecisionStatus(**decision),
        history=[v1alpha1.HistoryEntry(**decision, from_replicas=count, from_batch_cap=count)] * v1alpha1.HISTORY_LIMIT,
        cold_start=length,
    )
