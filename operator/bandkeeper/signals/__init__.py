"""From Prometheus to observations: runtime presets, the reader, and one collection per tick for all policies."""
