"""Rewriting a trained SAE without changing what it does: other units, other norms, another place for a bias.

Everything is computed in float64 and rounded once.
Shapes: D d_model, F d_sae, G groups.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from train.errors import TrainError
from train.inference import InferenceSAE


def fold(sae: InferenceSAE, mean_D: Float[Tensor, " D"], scale: float) -> InferenceSAE:
    """An SAE trained on x′ = (x − mean) / scale, rewritten for raw x.

    Its latents are scale × the latents on x′, its reconstruction is scale × x̂′ + mean. W_enc and W_dec stay as they are
    (dictionary_learning's `scale_biases`; SAELens scales the matrices instead and keeps the latents). So do the groups'
    shares of the activation, and their biases, like b_dec's part, are scaled.

    Raises:
        TrainError: a scale that is not positive and finite, a mean of another width.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise TrainError(f"scale must be positive and finite, got {scale}")
    if tuple(mean_D.shape) != (sae.d_model,):
        raise TrainError(f"mean must be [D] = [{sae.d_model}], got {list(mean_D.shape)}")
    mean_D = mean_D.to(sae.device, torch.float64)
    biases = {name: getattr(sae, name) for name in ("b_enc", "b_dec", "threshold", "b_gate", "b_mag", "group_bias")}
    scaled = {name: scale * bias.double() for name, bias in biases.items() if bias is not None}
    scaled["b_dec"] += mean_D
    if not sae.apply_b_dec_to_input:
        _shift(scaled, sae, -mean_D)
    return sae.replaced({name: bias.float() for name, bias in scaled.items()})


def fold_decoder_norms(sae: InferenceSAE, *, norm_weighted: bool) -> InferenceSAE:
    """The same reconstruction with decoder rows d of norm 1: latents a become a·‖d‖.

    Args:
        sae: any norms; a row of zeros stays.
        norm_weighted: whether the top-k or the threshold looked at a·‖d‖ (SAELens' `rescale_acts_by_decoder_norm`)
            rather than at a.

    Raises:
        TrainError: a top-k that looked at a: it would select other latents after folding; group biases: the groups'
            shares of the activation would be others.
    """
    if sae.group_bias is not None:
        raise TrainError("group biases go with decoder rows of norm 1: other norms cannot be folded beside them")
    if sae.architecture == "topk" and not norm_weighted:
        raise TrainError(
            "a top-k of unweighted activations cannot be folded to a unit-norm decoder: its choice would change"
        )
    norms_F = sae.W_dec.double().norm(dim=1)
    norms_F = torch.where(norms_F > 0, norms_F, 1.0)
    folded = {"W_enc": sae.W_enc.double() * norms_F, "W_dec": sae.W_dec.double() / norms_F[:, None]}
    for name in ("b_enc", "b_gate", "b_mag") if norm_weighted else ("b_enc", "b_gate", "b_mag", "threshold"):
        if (bias := getattr(sae, name)) is not None:
            folded[name] = bias.double() * norms_F
    return sae.replaced({name: tensor.to(getattr(sae, name).dtype) for name, tensor in folded.items()})


def with_pre_bias(sae: InferenceSAE, apply: bool) -> InferenceSAE:
    """The same SAE with `apply_b_dec_to_input` as asked; the encoder's biases make up for the difference."""
    if sae.apply_b_dec_to_input == apply:
        return sae
    biases: dict[str, Tensor] = {}
    _shift(biases, sae, sae.b_dec.double() * (1 if apply else -1))
    same = sae.replaced({name: bias.float() for name, bias in biases.items()})
    return replace(same, apply_b_dec_to_input=apply)


def _shift(biases: dict[str, Tensor], sae: InferenceSAE, by_D: Tensor) -> None:
    """Change the encoder's biases as if `by_D` were added to the input."""
    shift_F = by_D @ sae.W_enc.double()
    for name in ("b_enc", "b_gate", "b_mag"):
        if (bias := getattr(sae, name)) is not None:
            gain_F = sae.r_mag.double().exp() if name == "b_mag" and sae.r_mag is not None else 1.0
            biases[name] = biases.get(name, bias.double()) + gain_F * shift_F
