"""Slow topics, their words, and fast features: what a temporal variant should tell apart.

Topics persist from position to position, words come and go under their topic, and the rest is independent in time.
Shapes: n samples, T positions, P true features, D d_model, p topics, C words a topic.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evals.planted.source import Drawn, Family, Planted, Sample, bernoulli, exclusive_children, family


@dataclass(frozen=True, kw_only=True)
class Temporal(Planted):
    """Truths in the order topics, words (topic by topic), fast features; `sample` gives windows [n, W, D]."""

    noise: float = 0.05
    topics: int = 16
    words: int = 6
    """Of each topic; at most one is on at a position."""
    fast: int = 48
    p_topic: float = 0.1
    """Stationary probability that a topic is on."""
    p_word: float = 0.7
    """That a topic which is on has one of its words on; drawn anew at every position."""
    p_fast: float = 0.05
    persistence: float = 0.95
    """ρ: a topic keeps its state with this probability and is drawn anew otherwise: its auto-correlation is ρ^lag."""
    word_magnitude: float = 1.5
    """Of words and fast features alike, relative to topics: slow features are the quiet ones."""
    window: int = 8

    def __post_init__(self) -> None:
        """Refuse impossible sizes and persistence.

        Raises:
            ValueError: naming the field.
        """
        super().__post_init__()
        if min(self.topics, self.words, self.window) < 1 or self.fast < 0:
            raise ValueError(
                "need topics >= 1, words >= 1, window >= 1 and fast >= 0,"
                f" got {self.topics=}, {self.words=}, {self.window=}, {self.fast=}"
            )
        if not 0 <= self.persistence <= 1:
            raise ValueError(f"persistence must be a probability from 0 to 1, got {self.persistence}")

    @staticmethod
    def aligned(**changes: Any) -> "Temporal":
        """Slow features are the frequent ones, so that whatever finds frequent features looks temporal."""
        return Temporal(**{"p_topic": 0.1, "p_fast": 0.05, **changes})

    @staticmethod
    def decorrelated(**changes: Any) -> "Temporal":
        """Slow features are the rare ones: only persistence gives them away. With `persistence=0`, nothing does."""
        return Temporal(**{"p_topic": 0.03, "p_fast": 0.1, **changes})

    @property
    def family(self) -> Family:
        """Topics as parents, words as their children."""
        return family(self.topics, self.words)

    @property
    def slow(self) -> Int[Tensor, " p"]:
        """Indices of the topics among the truths."""
        return self.family.parents

    @property
    def firing_rates(self) -> Float[Tensor, " P"]:
        """Topics, then words, then fast features."""
        word = self.p_topic * self.p_word / self.words
        return torch.tensor(
            [self.p_topic] * self.topics + [word] * (self.topics * self.words) + [self.p_fast] * self.fast
        )

    @property
    def magnitudes(self) -> Float[Tensor, " P"]:
        """1 for topics, `word_magnitude` for all else."""
        magnitudes_P = torch.full((self.n_features,), self.word_magnitude)
        magnitudes_P[self.slow] = 1.0
        return magnitudes_P

    def draw(self, n: int, context: int, generator: torch.Generator) -> Drawn:
        """A document begins in the stationary state, so that no position is special."""
        state_np = bernoulli(self.p_topic, n, self.topics, generator=generator)
        states = [state_np]
        for _ in range(context - 1):
            keep_np = bernoulli(self.persistence, n, self.topics, generator=generator)
            state_np = torch.where(keep_np, state_np, bernoulli(self.p_topic, n, self.topics, generator=generator))
            states.append(state_np)
        topics_nTp = torch.stack(states, dim=1)
        words_nTw = exclusive_children(topics_nTp, self.p_word, self.words, generator)
        fast_nTf = bernoulli(self.p_fast, n, context, self.fast, generator=generator)
        return Drawn(torch.cat([topics_nTp, words_nTw, fast_nTf], dim=-1).float())

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """n independent windows of consecutive positions: x [n, W, D], latents [n, W, P]."""
        return self.sequences(n, self.window, generator)
