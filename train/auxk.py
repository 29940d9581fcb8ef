"""AuxK: dead latents learn by reconstructing what the living leave over (Gao et al. 2024, arXiv 2406.04093, §A.2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from train.sae import SAE, Context


def auxk(
    sae: SAE, x_BD: Float[Tensor, "B D"], x_hat_BD: Float[Tensor, "B D"], context: Context, k_aux: int
) -> Float[Tensor, ""]:
    """‖e − ê‖² / ‖e − mean e‖², where e is the (detached) error and ê its reconstruction by the top k_aux dead latents.

    0 when nothing is dead. The error is what W_dec's latents left over, b_dec included, so ê has no bias of its own.
    """
    dead = context.dead
    if not sae.world.place(len(dead))[1]:
        return x_BD.new_zeros(())
    error_BD = (x_BD - x_hat_BD).detach()
    w_enc_nD, w_dec_nD = sae.W_enc.T.index_select(0, dead), sae.W_dec.index_select(0, dead)
    f_Bn = torch.relu(sae.centred(x_BD) @ w_enc_nD.T + sae.encoder_bias().index_select(0, dead))
    e_hat_BD = sae.world.total(sae.world.keep_in_rows(f_Bn, k_aux) @ w_dec_nD)
    rest = (error_BD - e_hat_BD).square().mean()
    scale = sae.world.mean((error_BD - sae.world.mean(error_BD.mean(0))).square().mean())
    return rest / scale.clamp_min(torch.finfo(scale.dtype).tiny)


def aux_size(k_aux: int, d_model: int) -> int:
    """k_aux, or D/2 where none is given."""
    return k_aux or max(1, d_model // 2)
