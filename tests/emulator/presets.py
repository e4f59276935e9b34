"""Server parameters with their sources; a workload names one with `preset:` and overrides single values beside it.

Where a source gives no figure (capacity, KV tokens, prefill budget) the value is ours and says so.
"""

from __future__ import annotations

CONTINUOUS: dict[str, dict[str, float | int]] = {
    # llm-d workload-variant-autoscaler (Apache-2.0), emulator defaults; capacity and KV tokens ours.
    "a100-wva": {
        "alpha_ms": 20.58,
        "beta_ms": 0.41,
        "gamma_ms": 5.2,
        "delta_ms_per_token": 0.1,
        "capacity": 64,
        "kv_tokens": 200_000,
    },
    # Same project's chart values; maximum batch 512 from there, KV tokens ours.
    "h100-wva": {
        "alpha_ms": 7.470,
        "beta_ms": 0.044,
        "gamma_ms": 15.415,
        "delta_ms_per_token": 0.000337,
        "capacity": 512,
        "kv_tokens": 1_000_000,
    },
    "l40s-wva": {
        "alpha_ms": 22.619,
        "beta_ms": 0.181,
        "gamma_ms": 226.19,
        "delta_ms_per_token": 0.018,
        "capacity": 64,
        "kv_tokens": 100_000,
    },
    # aiconfigurator silicon_sample.csv (Apache-2.0), Llama-3.1-8B bf16, H100, TensorRT-LLM, 1024/512: 6.73 + .0982 b
    # (R2 1.000), measured up to batch 128. Prefill derived: 2 x 8.03e9 FLOP a token at 45 % of 989 TFLOPS. KV derived:
    # (0.9 x 80 - 16) GB at 128 KiB a token.
    "h100-llama3-8b": {
        "alpha_ms": 6.73,
        "beta_ms": 0.0982,
        "gamma_ms": 10.0,
        "delta_ms_per_token": 0.036,
        "capacity": 128,
        "kv_tokens": 420_000,
    },
    # The same machine with a context term: its slopes are .0982, .1915, .3660 at mean contexts of 1280, 2304, 4352.
    "h100-llama3-8b-context": {
        "alpha_ms": 6.6,
        "beta_ms": 0.0,
        "kappa_ms_per_ktoken": 0.083,
        "gamma_ms": 10.0,
        "delta_ms_per_token": 0.036,
        "capacity": 128,
        "kv_tokens": 420_000,
    },
    # Same table: H100, vLLM, Llama-3.1-70B fp8, TP4, 1024/1024 (R2 .975); delta from its TTFT of 81 ms at batch 4.
    "h100-llama3-70b-tp4": {
        "alpha_ms": 11.29,
        "beta_ms": 0.134,
        "gamma_ms": 5.0,
        "delta_ms_per_token": 0.074,
        "capacity": 64,
        "kv_tokens": 600_000,
    },
}

# NVIDIA DeepLearningExamples, ResNet-50 FP16 under Triton: mean latency by batch, ms. Throughput peaks at 32 (A100).
DYNAMIC: dict[str, dict[str, object]] = {
    "resnet50-a100": {
        "batch_ms": {1: 2.13, 2: 2.19, 4: 2.76, 8: 3.90, 16: 5.79, 32: 11.19, 64: 25.2, 128: 48.1},
        "capacity": 128,
    },
    "resnet50-v100": {
        "batch_ms": {1: 2.84, 2: 3.35, 4: 4.19, 8: 5.98, 16: 9.27, 32: 15.66, 64: 38.4, 128: 82.2},
        "capacity": 128,
    },
    "resnet50-t4": {
        "batch_ms": {1: 3.00, 2: 4.00, 4: 5.75, 8: 9.00, 16: 15.1, 32: 28.4, 64: 53.2, 128: 100.2},
        "capacity": 128,
    },
}
