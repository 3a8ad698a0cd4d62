"""The learning rate of each update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a half cosine to zero or a constant rate.

    Attributes:
        peak: the learning rate after the warm-up.
        total_steps: updates the schedule spans.
        warmup_steps: updates of the warm-up.
        shape: `cosine` (Loshchilov and Hutter, arXiv 1608.03983, without restarts) or `constant`.
    """

    peak: float
    total_steps: int
    warmup_steps: int
    shape: Literal["cosine", "constant"] = "cosine"

    def __call__(self, step: int) -> float:
        """The learning rate of update `step`, which counts from 0; never 0 within the schedule."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        if self.shape == "constant":
            return self.peak
        rest = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / rest)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * progress))
