"""vLLM itself, on the CPU: a tiny model with random weights behind the real server, with the real metrics."""
