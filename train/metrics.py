"""What is reported of a training step, each metric with its definition.

Ratios are the same in raw and in normalised units; `mse` is in raw units. Everything comes as 0-dimensional tensors on
the device, so that nothing waits until they are written.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from train.normalise import Normalisation
from train.sae import SAE, Forward
from train.world import ALONE, World

DEFINITIONS: dict[str, str] = {
    "loss": "weighted sum of all terms",
    "fvu": "Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ the batch mean: fraction of variance unexplained",
    "explained_variance": "1 − fvu",
    "fvu_uncentred": "Σ‖x − x̂‖² / Σ‖x‖² in raw units, the mean not removed (smaller where the mean is large)",
    "mse": "mean over rows of ‖x − x̂‖² in raw units, summed over d_model",
    "cosine": "mean over rows of cos(x, x̂) in raw units",
    "cosine_centred": "mean over rows of cos(x − μ, x̂ − μ), μ the mean over the training rows",
    "l0": "mean number of latents > 0 a row",
    "l1": "mean sum of activations a row, normalised units",
    "dead": "share of latents silent for dead_after rows",
    "decoder_norm": "mean norm of W_dec's rows",
    "decoder_norm_drift": "largest |norm − 1| of W_dec's rows",
    "grad_norm": "norm of the whole gradient before clipping",
    "lr": "learning rate",
    "rows_per_s": "rows trained on a second since the last report",
    "gb_per_s": "10⁹ bytes of bfloat16 vectors that the feed handed out a second, since the last report",
    "feed_wait": "share of that time spent waiting for the feed",
    "documents_per_batch": "distinct documents in this batch (of many processes: in the first one's share)",
    "epoch": "passes over the data",
}


@torch.no_grad()
def step_metrics(forward: Forward, normalisation: Normalisation, world: World = ALONE) -> dict[str, Tensor]:
    """Of one batch, before the optimiser's step."""
    x_BD, x_hat_BD = forward.x_BD, forward.x_hat_BD.detach()
    raw_BD, raw_hat_BD = normalisation.undo(x_BD), normalisation.undo(x_hat_BD)
    own = {
        "error": (x_BD - x_hat_BD).square().sum(),
        "variance": (x_BD - world.mean(x_BD.mean(0))).square().sum(),
        "square": raw_BD.square().sum(),
        "loss": forward.total(),
        "cosine": cosine_similarity(raw_BD, raw_hat_BD).mean(),
        "cosine_centred": cosine_similarity(x_BD, x_hat_BD).mean(),
        "l0": world.total(forward.code.l0()),
        "l1": world.total(forward.code.detach().l1()),
        **{f"term/{name}": term.value for name, term in forward.terms.items()},
    }
    # All in one reduction: a small one costs as much as its way to the others and back.
    means = dict(zip(own, world.mean(torch.stack([one.detach() for one in own.values()])).unbind(), strict=True))
    error, variance, square = (means.pop(name) for name in ("error", "variance", "square"))
    weights = {
        f"weight/{name}": torch.as_tensor(one.weight, dtype=torch.float32).detach()
        for name, one in forward.terms.items()
    }
    return {
        **means,
        "fvu": error / variance,
        "explained_variance": 1 - error / variance,
        "fvu_uncentred": error * normalisation.scale**2 / square,
        "mse": error * normalisation.scale**2 / len(x_BD),
        **weights,
    }


@torch.no_grad()
def decoder_metrics(sae: SAE) -> dict[str, Tensor]:
    """Of the decoder's rows."""
    norm_F = sae.W_dec.norm(dim=1)
    return {
        "decoder_norm": sae.world.total(norm_F.mean()) / sae.world.shards,
        "decoder_norm_drift": -sae.world.smallest(-(norm_F - 1).abs().max()),
    }


def gradient_shares(sae: SAE, forward: Forward) -> dict[str, Tensor]:
    """Norm of each weighted term's gradient over the sum of these norms; call before `backward`, it keeps the graph."""
    parameters = {name: one for name, one in sae.named_parameters() if one.requires_grad}
    norms = {}
    for name, term in forward.terms.items():
        used = isinstance(term.weight, Tensor) or term.weight
        if not used or not term.value.requires_grad:
            continue
        found = torch.autograd.grad(
            term.weight * term.value, list(parameters.values()), retain_graph=True, allow_unused=True
        )
        gradients = {one: gradient for one, gradient in zip(parameters, found, strict=True) if gradient is not None}
        if gradients:
            sae.world.reduce_gradients(gradients)
            norms[name] = sae.world.norm({one: gradient.square().sum() for one, gradient in gradients.items()})
    total = sum(norms.values(), torch.zeros(())).clamp_min(1e-30)
    return {f"gradient/{name}": norm / total for name, norm in norms.items()}


def detached(metrics: dict[str, Tensor]) -> dict[str, float]:
    """All at once on the host: the one place that waits for the device."""
    if not metrics:
        return {}
    return dict(zip(metrics, torch.stack([one.double().cpu() for one in metrics.values()]).tolist(), strict=True))
