"""Learning rate and sparsity as functions of the step."""

import math

TOP_K_FAMILIES = ("topk", "batchtopk", "matryoshka")


def learning_rate(step: int, *, lr: float, steps: int, warmup: int, decay: float) -> float:
    """Linear warm-up, constant, then linear to 0 over the last `decay` share of the steps.

    Args:
        step: steps taken before this one.
        lr: the constant value.
        steps: length of the run.
        warmup: steps of warm-up.
        decay: share of the steps, 0 to 1 (0.2 in Anthropic's April 2024 update and in dictionary_learning).
    """
    up = min(1.0, (step + 1) / warmup) if warmup else 1.0
    down = min(1.0, (steps - step) / (steps * decay)) if decay else 1.0
    return lr * up * down


def sparsity(step: int, warmup: int) -> float:
    """Factor of the sparsity coefficients: from 0 to 1 over `warmup` steps."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def default_lr(architecture: str, d_sae: int) -> float:
    """What the sources use.

    TopK families: 2e-4 / √(F / 2¹⁴) (Gao et al. 2024, §A.3, as dictionary_learning has it). JumpReLU: 7e-5 at 2¹⁴
    latents (Gemma Scope), scaled by the same rule. ReLU and Gated: 3e-4 (dictionary_learning's standard SAEs).
    """
    scale = 1 / math.sqrt(d_sae / 2**14)
    if architecture in TOP_K_FAMILIES:
        return 2e-4 * scale
    return 7e-5 * scale if architecture == "jumprelu" else 3e-4
