"""What clients ask for: arrivals with prompt and output lengths, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests in order of arrival.

    Attributes
    ----------
    arrival_s
        Seconds since the start, ascending, float64 of shape (n,).
    prompt_tokens, output_tokens
        At least 1, int32 of shape (n,). Servers that do not speak tokens ignore them.
    duration_s
        How long arrivals go on; the run ends there, what is unserved then is a miss.
    name
        For people: the load's or the file's name with its parameters.
    notes
        What a person must know about it: rows skipped, how the rate was scaled.
    """

    arrival_s: Seconds
    prompt_tokens: Tokens
    output_tokens: Tokens
    duration_s: float
    name: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.arrival_s.shape == self.prompt_tokens.shape == self.output_tokens.shape):
            raise ValueError("arrivals and lengths must have the same shape")
        if len(self) and (np.any(np.diff(self.arrival_s) < 0) or self.arrival_s[0] < 0):
            raise ValueError("arrivals must ascend from 0")

    def __len__(self) -> int:
        return int(self.arrival_s.shape[0])

    @property
    def mean_prompt_tokens(self) -> float:
        return float(self.prompt_tokens.mean()) if len(self) else 0.0

    @property
    def mean_output_tokens(self) -> float:
        return float(self.output_tokens.mean()) if len(self) else 0.0
