"""Scrape configuration of a Prometheus that watches the emulator."""

from __future__ import annotations

from typing import Any


def scrape_configs(emulator_url: str, interval: str = "1s", dcgm_honor_labels: bool = False) -> list[dict[str, Any]]:
    """Two entries for `scrape_configs`: the pods' servers and the nodes' dcgm-exporters.

    With `dcgm_honor_labels` false (the exporter's chart default) a GPU's workload stands in `exported_pod`,
    `exported_namespace` and `exported_container`, with true in `pod`, `namespace` and `container`.
    """
    url = emulator_url.rstrip("/")
    return [
        {
            "job_name": "model-servers",
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "http_sd_configs": [{"url": f"{url}/sd/pods", "refresh_interval": "1s"}],
        },
        {
            "job_name": "dcgm-exporter",
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "honor_labels": dcgm_honor_labels,
            "http_sd_configs": [{"url": f"{url}/sd/dcgm", "refresh_interval": "1s"}],
        },
    ]


def kubelet_scrape_config(emulator_url: str, interval: str = "1s") -> dict[str, Any]:
    """The nodes' cAdvisor, for workloads that have a `host`."""
    return {
        "job_name": "kubelet",
        "scrape_interval": interval,
        "scrape_timeout": interval,
        "honor_labels": True,
        "http_sd_configs": [{"url": f"{emulator_url.rstrip('/')}/sd/cadvisor", "refresh_interval": "1s"}],
    }
