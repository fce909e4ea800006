"""What may be drawn, and with which probability, by sorting in float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orcinus.engine.sampling.draw import draw_parameters
from orcinus.engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class Expected:
    """Holds probabilities (vocab_size,), 0 for what is not kept."""

    probs: NDArray[np.float64]

    @property
    def uniforms(self) -> NDArray[np.float32]:
        """Return a random number for each of `tokens`: in the middle of what draws it."""
        ends = self.probs.cumsum()
        middles: NDArray[np.float64] = (ends - self.probs / 2) / ends[-1]
        return middles[self.tokens].astype(np.float32)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Return those that are kept, but for some so unlikely that their random number is hard to write in float32."""
        return np.flatnonzero(self.probs > 4e-6 * self.probs.sum())


def expected_of(logits: NDArray[np.float64], sampling: SamplingParams, top_p: float | None = None) -> Expected:
    temperature, min_p, own_top_p, top_k = np.array(draw_parameters(sampling), dtype=np.float32).astype(np.float64)
    top_p = own_top_p if top_p is None else top_p
    kept = np.ones(len(logits), dtype=bool)
    if 0 < top_k < len(logits):
        kept = logits >= np.sort(logits)[-int(top_k)]
    probs = np.where(kept, np.exp((logits - logits.max()) / temperature), 0.0)
    if top_p < 1:
        allowed = np.sort(probs)[::-1][: int(top_k) if top_k > 0 else None]
        reached = allowed.cumsum()
        last = allowed[min(np.searchsorted(reached, top_p * reached[-1]), len(allowed) - 1)]
        kept = probs >= last * (1 - 1e-12)
    return Expected(np.where(kept & (probs >= min_p), probs, 0.0))


def is_on_edge(logits: NDArray[np.float64], sampling: SamplingParams) -> bool:
    """Return whether rounding in float32 may decide what top_p, min_p or nearly equal probabilities keep."""
    exact = expected_of(logits, sampling)
    values = np.unique(np.exp((logits - logits.max()) / max(sampling.temperature, 1e-30)))
    is_near = (np.diff(values) < 1e-5 * values[1:]) & (values[1:] > 1e-7)
    around = [expected_of(logits, sampling, top_p=min(sampling.top_p * factor, 1.0)) for factor in (1 - 1e-5, 1 + 1e-5)]
    by_top_p = sampling.top_p < 1 and any(((each.probs > 0) != (exact.probs > 0)).any() for each in around)
    by_min_p = (np.abs(values - sampling.min_p) < 1e-5 * sampling.min_p).any() and sampling.min_p < 1
    return bool(is_near.any() or by_top_p or by_min_p)
