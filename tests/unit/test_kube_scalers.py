"""Other autoscalers, found by their target."""

from __future__ import annotations

from typing import Any

from bandkeeper.kube.objects import Key
from bandkeeper.kube.reflector import Change
from bandkeeper.kube.scalers import Scaler, Scalers, trim_hpa, trim_scaled_object


def raw(own_name: str, **target: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "serving", "name": own_name}, "spec": {"scaleTargetRef": target}}


class Source:
    def __init__(self, *scalers: Scaler) -> None:
        self.objects: dict[Key, Scaler] = {(scaler.namespace, scaler.name): scaler for scaler in scalers}
        self.synced, self.problem = True, ""
        self.callback: Any = None

    def subscribe(self, callback: Any) -> None:
        self.callback = callback


def scalers_of(*sources: Source) -> Scalers:
    return Scalers(*sources)  # type: ignore[arg-type]


def test_scalers_are_found_by_group_kind_and_name_whatever_the_version() -> None:
    hpa = trim_hpa(raw("h", apiVersion="apps/v1beta2", kind="Deployment", name="chat"))
    keda = trim_scaled_object(raw("k", name="chat"))
    found = scalers_of(Source(hpa), Source(keda))
    assert found.of("serving", "apps/v1", "Deployment", "chat") == (hpa, keda)
    assert (hpa.kind, keda.kind, keda.group) == ("HorizontalPodAutoscaler", "ScaledObject", "apps")
    assert found.of("other", "apps/v1", "Deployment", "chat") == ()
    assert found.of("serving", "apps/v1", "StatefulSet", "chat") == ()
    assert found.of("serving", "tests.dev/v1", "Deployment", "chat") == ()
    assert found.of("serving", "apps/v1", "Deployment", "other") == ()


def test_a_target_without_a_group_may_be_of_any() -> None:
    hpa = trim_hpa(raw("h", kind="Deployment", name="chat"))
    assert scalers_of(Source(hpa)).of("serving", "apps/v1", "Deployment", "chat") == (hpa,)


def test_changes_are_followed() -> None:
    source = Source()
    found = scalers_of(source)
    one = trim_hpa(raw("h", apiVersion="apps/v1", kind="Deployment", name="chat"))
    two = trim_hpa(raw("h", apiVersion="apps/v1", kind="Deployment", name="other"))
    source.callback(Change(("serving", "h"), None, one))
    assert found.of("serving", "apps/v1", "Deployment", "chat") == (one,)
    source.callback(Change(("serving", "h"), one, two))
    assert found.of("serving", "apps/v1", "Deployment", "chat") == ()
    assert found.of("serving", "apps/v1", "Deployment", "other") == (two,)
    source.callback(Change(("serving", "h"), two, None))
    assert found.of("serving", "apps/v1", "Deployment", "other") == ()
    assert found._by_target == {}  # nothing is left of targets that nobody scales any more


def test_what_cannot_be_seen_is_said() -> None:
    blind = Source()
    blind.synced, blind.problem = False, "cannot be read"
    assert scalers_of(Source()).synced
    assert not scalers_of(Source(), blind).synced
    assert scalers_of(Source(), blind).problem == "cannot be read"
