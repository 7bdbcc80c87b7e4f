"""Exponential moving average of the global model over rounds: what samples are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from fedscan.training.weights import Weights


@dataclass(frozen=True)
class Ema:
    """The average's rule; its state (weights and how many rounds they average) is the caller's."""

    half_life_rounds: float
    """Rounds in which an old model's share halves; 0: no average, the newest model is the result."""

    def decay(self, count: int) -> float:
        """The old average's share when one more model joins `count` averaged ones.

        min(0.5^(1/h), (count+1)/(count+10)): the second term lets the initial weights go quickly, as in
        torch_ema and diffusers.
        """
        if self.half_life_rounds <= 0.0:
            return 0.0
        return float(min(0.5 ** (1.0 / self.half_life_rounds), (count + 1) / (count + 10)))

    def update(self, ema: Weights, weights: Weights, count: int) -> Weights:
        """float32 decay x `ema` + (1 - decay) x `weights`, in float64; `count` models were averaged before."""
        decay = self.decay(count)
        if decay == 0.0:
            return {name: tensor.clone() for name, tensor in weights.items()}
        return {
            name: (decay * ema[name].double() + (1.0 - decay) * tensor.double()).float()
            for name, tensor in weights.items()
        }
