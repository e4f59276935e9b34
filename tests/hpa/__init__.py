"""The lab's HPA rule against the real HorizontalPodAutoscaler controller. Minutes long: `make test-hpa`."""
