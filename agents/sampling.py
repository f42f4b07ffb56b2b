"""Actions drawn from probabilities at a temperature."""

import numpy as np

from agents.agent import Rngs


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [n, A] of logits."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def temper(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities float64[n, A] at a temperature above 0."""
    return softmax(np.log(scores.astype(np.float64) + 1e-30) / temperature)


def choose(scores: np.ndarray, temperature: float, rngs: Rngs) -> np.ndarray:
    """Return an action int[n] for each row of probabilities [n, A]: at temperature 0 the likeliest, else one drawn."""
    if temperature == 0:
        return scores.argmax(axis=1)
    tempered = temper(scores, temperature)
    return np.array([rng.choice(len(p), p=p) for rng, p in zip(rngs, tempered, strict=True)])
