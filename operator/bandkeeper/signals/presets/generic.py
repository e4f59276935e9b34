"""Any server: nothing but what the policy's own `signals` give, and the GPUs."""

from __future__ import annotations

from bandkeeper.decide.policy import Batching
from bandkeeper.signals.presets import containers, gpu, work
from bandkeeper.signals.sources import Preset

PRESET = Preset(
    name="Generic",
    batching=Batching.UNKNOWN,
    default_capacity=1,  # a server that says nothing is taken to work on one request at a time: the safe side
    capacity_names=("--max-batch-size", "MAX_BATCH_SIZE", "--max-num-seqs", "MAX_NUM_SEQS"),
    cap_names=("--max-num-active-seqs", "MAX_NUM_ACTIVE_SEQS"),
    # SGLang's (-1 is no bound, and not read), TensorRT-LLM's, vLLM's, and one for servers that have none.
    prefill_tokens_names=(
        "--chunked-prefill-size",
        "--max-num-tokens",
        "--max-num-batched-tokens",
        "MAX_NUM_BATCHED_TOKENS",
        "MAX_PREFILL_TOKENS",
    ),
    sources={**work.SOURCES, **gpu.SOURCES, **containers.SOURCES},
)
