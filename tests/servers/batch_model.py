"""A model for Triton's Python backend: a batch takes 20 ms and 2 ms for each row; more than 32 rows it refuses."""

import json
import time
from typing import Any

import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # Triton puts it on the path

MOST_ROWS = 32
BATCH_S, ROW_S = 0.020, 0.002


class TritonPythonModel:
    """What Triton looks for by this name."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Refuse what an engine that was built for fewer rows would refuse, and take as long to load as one is told."""
        config = json.loads(args["model_config"])
        if config["max_batch_size"] > MOST_ROWS:
            raise triton.TritonModelException(f"the engine was built for batches of at most {MOST_ROWS}")
        load_s = config.get("parameters", {}).get("load_s", {}).get("string_value", "0")
        time.sleep(float(load_s))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Give each request its own rows back."""
        rows = [triton.get_input_tensor_by_name(request, "ROWS").as_numpy() for request in requests]
        time.sleep(BATCH_S + ROW_S * sum(len(each) for each in rows))
        return [triton.InferenceResponse([triton.Tensor("SAME", each)]) for each in rows]
