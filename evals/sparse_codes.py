"""Latents of trained SAEs as the entries that are on: a row has tens of them among tens of thousands.

Shapes: R rows, F d_sae, D d_model, n entries.
"""

from typing import Final

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train import group_biases, kernels
from train.codes import Code, Entries
from train.inference import InferenceSAE

_AT_ONCE: Final = 2**22
"""Pre-activations in memory at once on a CPU: 16 MB, which stay in its cache."""
_AT_ONCE_GPU: Final = 2**28
_FEWEST: Final = 128
"""Rows at once, so that the product pays."""


@torch.no_grad()
def encode(sae: InferenceSAE, x_RD: Float[Tensor, "R D"]) -> Entries:
    """The latents above 0 of rows in raw model units, those of `InferenceSAE.encode`; never [R, F] at once."""
    at_once = _AT_ONCE if x_RD.is_cpu else _AT_ONCE_GPU
    parts = [_encode(sae, part_rD) for part_rD in x_RD.split(max(_FEWEST, at_once // sae.d_sae))]
    if not parts:
        none_n = x_RD.new_zeros(0, dtype=torch.int64)
        return Entries(x_RD.new_zeros(0), none_n, x_RD.new_zeros(1, dtype=torch.int64))
    counts_R = torch.cat([part.offsets.diff() for part in parts])
    return Entries(
        torch.cat([part.values_n for part in parts]),
        torch.cat([part.features_n for part in parts]),
        _offsets(counts_R),
    )


@torch.no_grad()
def decode(sae: InferenceSAE, entries: Entries) -> Float[Tensor, "R D"]:
    """Reconstructions, those of `InferenceSAE.decode`."""
    x_hat_RD = kernels.decode(entries.values_n, entries.features_n, entries.offsets, sae.W_dec.float(), sae.b_dec)
    if sae.group_bias is None or sae.group_of is None:
        return x_hat_RD
    amounts_RH = group_biases.amounts(Code(sae.d_sae, entries=entries), sae.group_of, sae.n_groups)
    return group_biases.added(x_hat_RD, amounts_RH, sae.group_bias)


def matrix(entries: Entries, d_sae: int) -> sp.csr_array:
    """The codes [R, F] as scipy's sparse matrix, float32."""
    offsets = entries.offsets.cpu().numpy()
    shape = (len(offsets) - 1, d_sae)
    features_n = entries.features_n.cpu().numpy().astype(np.int32)
    return sp.csr_array((entries.values_n.cpu().numpy(), features_n, offsets.astype(np.int32)), shape=shape)


def _encode(sae: InferenceSAE, x_RD: Tensor) -> Entries:
    if not x_RD.is_cpu or sae.dtype != torch.float32 or sae.b_enc is None:
        return Entries(*kernels.sparse_from_dense(sae.encode(x_RD)))
    x_RD = x_RD - sae.b_dec if sae.apply_b_dec_to_input else x_RD
    if sae.architecture == "topk":
        return _positive(Entries(*kernels.select_top_k(x_RD, sae.W_enc, sae.b_enc, sae.k)))
    pre_RF = torch.addmm(sae.b_enc, x_RD, sae.W_enc).numpy()
    # In one pass over memory; torch's own search for entries takes as long as the product.
    least = 0.0 if sae.threshold is None else sae.threshold.clamp_min(0).numpy()
    places_n = np.flatnonzero(pre_RF > least)
    values_n = torch.from_numpy(pre_RF.ravel()[places_n])
    rows_n, features_n = np.divmod(places_n, sae.d_sae)
    counts_R = torch.from_numpy(np.bincount(rows_n, minlength=len(pre_RF)))
    return Entries(values_n, torch.from_numpy(features_n), _offsets(counts_R))


def _positive(entries: Entries) -> Entries:
    """Without what a top-k took although it is not above 0."""
    on_n = entries.values_n > 0
    if bool(on_n.all()):
        return entries
    before = torch.cat([on_n.new_zeros(1, dtype=torch.int64), on_n.cumsum(0)])
    return Entries(entries.values_n[on_n], entries.features_n[on_n], before[entries.offsets])


def _offsets(counts_R: Int64[Tensor, " R"]) -> Int64[Tensor, " R1"]:
    return torch.cat([counts_R.new_zeros(1), counts_R.cumsum(0)])
