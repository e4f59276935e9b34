"""Tests of the node agent against a stand-in for libnvidia-ml and a PodResources server on a real unix socket."""
