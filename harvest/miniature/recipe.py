"""How the shipped miniature was made: every number of its architecture and of its training, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Gemma-2 in small (Gemma Team 2024, arXiv:2408.00118), trained in minutes on two CPU cores."""

    # Architecture: the ratios of Gemma-2-2B where a small model allows them.
    vocab_size: int = 3072
    d_model: int = 128
    n_layers: int = 4  # alternating, as in Gemma-2: even blocks slide, odd blocks see everything
    n_heads: int = 4
    n_kv_heads: int = 2  # grouped-query attention, two heads a group as in Gemma-2-2B
    head_dim: int = 32
    d_mlp: int = 512
    sliding_window: int = 64  # half a training row, so that the window really cuts
    max_positions: int = 256  # trained on rows of 128 only
    attention_soft_cap: float = 50.0
    logit_soft_cap: float = 30.0

    # Training.
    seed: int = 0
    reading_steps: int = 1200  # the mixture
    drill_steps: int = 1000  # questions, lists and spelling only
    rereading_steps: int = 1400  # the mixture again
    letter_weight: float = 20.0  # how much more the loss counts the letter of an option
    spelling_weight: float = 5.0  # … and the first letter of a word
    rows_per_step: int = 16
    row_length: int = 128
    muon_lr: float = 5e-3  # the matrices inside the blocks
    adam_lr: float = 3e-3  # embedding and norms
    weight_decay: float = 0.05  # on the matrices only
    warm_up: int = 100  # steps
    decay_share: float = 0.35  # the last part of the steps, over which the rates fall linearly
    floor: float = 0.02  # of the full rates, at the last step
    clip: float = 1.0  # global gradient norm

    @property
    def steps(self) -> int:
        """All optimiser steps."""
        return self.reading_steps + self.drill_steps + self.rereading_steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step."""
        return self.rows_per_step * self.row_length

    def rate(self, step: int) -> float:
        """The learning rates' multiplier at a step (0-based): up, flat, then linearly down."""
        left = (self.steps - step) / (self.steps * self.decay_share)
        return min(1.0, (step + 1) / self.warm_up) * max(self.floor, min(1.0, left))


RECIPE = Recipe()
MIDDLE_LAYER = 2  # 0-based block whose output the probes of the model card read
