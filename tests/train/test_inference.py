"""What a trained SAE computes, and the rewritings that must not change it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.planted_saes import ARCHITECTURES, D, F, K, planted_sae, rows, same_function
from train.errors import TrainError
from train.folding import fold, fold_decoder_norms, with_pre_bias
from train.inference import InferenceSAE


def by_hand(sae: InferenceSAE, x_D: Tensor) -> Tensor:
    """Latents of one row, latent by latent, as the papers define them."""
    x_D = x_D - sae.b_dec if sae.apply_b_dec_to_input else x_D
    f_F = torch.zeros(F)
    if sae.architecture == "gated":
        assert sae.b_gate is not None
        assert sae.b_mag is not None
        assert sae.r_mag is not None
        for i in range(F):
            if x_D @ sae.W_enc[:, i] + sae.b_gate[i] > 0:
                f_F[i] = max(0.0, float(x_D @ (sae.W_enc[:, i] * sae.r_mag[i].exp()) + sae.b_mag[i]))
        return f_F
    assert sae.b_enc is not None
    pre = [float(x_D @ sae.W_enc[:, i] + sae.b_enc[i]) for i in range(F)]
    on = sorted(range(F), key=lambda i: -pre[i])[: sae.k] if sae.architecture == "topk" else range(F)
    for i in on:
        threshold = 0.0 if sae.threshold is None else float(sae.threshold[i])
        f_F[i] = max(0.0, pre[i]) if pre[i] > threshold else 0.0
    return f_F


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encode_and_decode_are_the_definition_of_their_architecture(architecture: str, pre_bias: bool) -> None:
    sae = planted_sae(architecture, pre_bias=pre_bias)
    x_BD = rows(n=16)
    f_BF = sae.encode(x_BD)
    torch.testing.assert_close(f_BF, torch.stack([by_hand(sae, x_D) for x_D in x_BD]))
    wanted_BD = sum(f_BF[:, i, None] * sae.W_dec[i] for i in range(F)) + sae.b_dec
    torch.testing.assert_close(sae.decode(f_BF), wanted_BD)
    torch.testing.assert_close(sae.forward(x_BD), wanted_BD)


def test_a_latent_that_is_set_below_zero_counts_as_off_in_its_groups_share() -> None:
    sae = planted_sae("relu", n_groups=2)
    assert sae.group_bias is not None
    f_F = torch.zeros(F)
    f_F[[3, 4, 5]] = torch.tensor([1.0, 3.0, -2.0])  # of no group, of group 1, of group 2
    wanted_D = f_F @ sae.W_dec + sae.b_dec + 0.75 * sae.group_bias[0]
    torch.testing.assert_close(sae.decode(f_F), wanted_D)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_latents_of_a_row_do_not_depend_on_the_rows_beside_it(architecture: str) -> None:
    sae, x_BD = planted_sae(architecture), rows()
    alone_BF = torch.cat([sae.encode(x_BD[i : i + 1]) for i in range(len(x_BD))])
    torch.testing.assert_close(sae.encode(x_BD), alone_BF, rtol=1e-5, atol=1e-6)


def test_topk_keeps_at_most_k_latents_and_none_that_is_negative() -> None:
    f_BF = planted_sae("topk").encode(rows())
    assert ((f_BF > 0).sum(1) <= K).all()
    all_BF = replace(planted_sae("topk"), k=F).encode(rows())
    assert (all_BF >= 0).all()
    assert (all_BF == 0).any(), "the rows must have negative pre-activations"


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk", "matryoshka"])
def test_a_pre_activation_equal_to_its_threshold_is_off(architecture: str) -> None:
    sae = planted_sae(architecture, one_threshold=True)
    sae = replace(sae, W_enc=torch.zeros(D, F), b_enc=torch.full((F,), 0.5), threshold=torch.full((F,), 0.5))
    assert (sae.encode(rows(n=2)) == 0).all()
    assert sae.threshold is not None
    lower = replace(sae, threshold=torch.nextafter(sae.threshold, torch.tensor(0.0)))
    assert (lower.encode(rows(n=2)) == 0.5).all()


def test_leading_axes_are_kept() -> None:
    sae, x_BD = planted_sae("topk"), rows(n=6)
    f = sae.encode(x_BD.reshape(2, 3, D))
    assert f.shape == (2, 3, F)
    assert torch.equal(f.reshape(6, F), sae.encode(x_BD))
    assert sae.forward(x_BD[0]).shape == (D,)


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folded_sae_does_on_raw_rows_what_the_trained_one_did_on_normalised_rows(
    architecture: str, pre_bias: bool
) -> None:
    trained = planted_sae(architecture, pre_bias=pre_bias)
    mean_D, scale = torch.linspace(-30.0, 50.0, D), 3.7
    normalised_BD = rows()
    raw_BD = (scale * normalised_BD.double() + mean_D).float()
    folded = fold(trained, mean_D, scale)
    f_BF = trained.encode(normalised_BD)
    assert 0.02 < (f_BF > 0).float().mean() < 0.98
    torch.testing.assert_close(folded.encode(raw_BD) / scale, f_BF, rtol=1e-5, atol=1e-5)
    wanted_BD = (scale * trained.decode(f_BF).double() + mean_D).float()
    torch.testing.assert_close(folded.decode(scale * f_BF), wanted_BD, rtol=1e-5, atol=1e-5)
    assert torch.equal(folded.W_dec, trained.W_dec)


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bias_before_the_encoder_can_be_moved_into_it_and_back(architecture: str, pre_bias: bool) -> None:
    sae = planted_sae(architecture, pre_bias=pre_bias)
    moved = with_pre_bias(sae, not pre_bias)
    assert moved.apply_b_dec_to_input is not pre_bias
    same_function(sae, moved, rows())
    same_function(sae, with_pre_bias(moved, pre_bias), rows())


def test_moving_the_bias_of_massive_entries_costs_rounding_alone() -> None:
    """As docs/exports.md says."""
    mean_D = torch.zeros(D)
    mean_D[3], mean_D[7] = 400.0, -150.0
    sae, x_BD = fold(planted_sae("jumprelu"), mean_D, 1.0), rows() + mean_D
    difference_BF = with_pre_bias(sae, False).encode(x_BD) - sae.encode(x_BD)
    assert 1e-6 < difference_BF.abs().max() < 1e-4


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "topk"])
def test_decoder_norms_fold_into_the_latents_without_changing_a_reconstruction(architecture: str) -> None:
    sae = planted_sae(architecture, unit_norm=False)
    folded = fold_decoder_norms(sae, norm_weighted=False)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(F))
    x_BD = rows()
    torch.testing.assert_close(folded.encode(x_BD), sae.encode(x_BD) * sae.W_dec.norm(dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folded.forward(x_BD), sae.forward(x_BD), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "batchtopk", "matryoshka"])
def test_a_choice_made_on_norm_weighted_latents_stays_the_same_after_folding(architecture: str) -> None:
    sae = planted_sae(architecture, unit_norm=False)
    assert sae.b_enc is not None
    x_BD, norms_F = rows(), sae.W_dec.norm(dim=1)
    weighted_BF = ((x_BD - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms_F
    cut = weighted_BF.topk(K).values[:, -1:] if sae.threshold is None else sae.threshold + 1e-6
    f_BF = torch.relu(weighted_BF) * (weighted_BF >= cut)
    folded = fold_decoder_norms(sae, norm_weighted=True)
    torch.testing.assert_close(folded.encode(x_BD), f_BF, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folded.forward(x_BD), (f_BF / norms_F) @ sae.W_dec + sae.b_dec, rtol=1e-5, atol=1e-5)


def test_a_latent_whose_decoder_row_is_zero_survives_folding() -> None:
    sae = planted_sae("relu", unit_norm=False)
    w_dec_FD = sae.W_dec.clone()
    w_dec_FD[3] = 0
    folded = fold_decoder_norms(replace(sae, W_dec=w_dec_FD), norm_weighted=False)
    assert torch.equal(folded.W_dec[3], torch.zeros(D))


def test_a_top_k_of_unweighted_latents_is_not_folded_to_a_unit_norm_decoder() -> None:
    with pytest.raises(TrainError, match="choice would change"):
        fold_decoder_norms(planted_sae("topk", unit_norm=False), norm_weighted=False)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(TrainError, match="scale must be positive"):
        fold(planted_sae("relu"), torch.zeros(D), scale)


def test_a_mean_of_another_width_is_refused() -> None:
    with pytest.raises(TrainError, match=r"mean must be \[D\]"):
        fold(planted_sae("relu"), torch.zeros(D + 1), 1.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_is_for_the_matrices_alone(architecture: str) -> None:
    sae = planted_sae(architecture)
    half = sae.to(dtype=torch.bfloat16)
    assert (half.W_enc.dtype, half.W_dec.dtype) == (torch.bfloat16, torch.bfloat16)
    for name, tensor in half.tensors().items():
        assert name in ("W_enc", "W_dec") or torch.equal(tensor, getattr(sae, name))
    f_BF = half.encode(rows().bfloat16())
    assert f_BF.dtype == half.decode(f_BF).dtype == torch.float32
    assert ((f_BF > 0) == (sae.encode(rows()) > 0)).float().mean() > 0.97


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an unknown architecture": ("relu", {"architecture": "vanilla"}, "architecture must be one of relu, topk"),
    "a missing tensor": (
        "jumprelu",
        {"threshold": None},
        "jumprelu has the tensors W_enc, W_dec, b_enc, b_dec, threshold",
    ),
    "a tensor too many": ("relu", {"threshold": torch.zeros(F)}, "relu has the tensors"),
    "b_enc in a gated SAE": ("gated", {"b_enc": torch.zeros(F)}, "gated has the tensors"),
    "a transposed encoder": ("relu", {"W_enc": torch.zeros(F, D)}, r"W_enc must be \[D, F\]"),
    "a scalar threshold": ("jumprelu", {"threshold": torch.tensor(0.5)}, r"threshold must be \[F\]"),
    "double precision": ("relu", {"b_enc": torch.zeros(F).double()}, "b_enc must be float32"),
    "a threshold in bfloat16": ("jumprelu", {"threshold": torch.zeros(F).bfloat16()}, "threshold must be float32"),
    "matrices of two types": ("relu", {"W_dec": torch.zeros(F, D).half()}, "W_dec must be float32, bfloat16 or"),
    "not a number": ("relu", {"b_enc": torch.full((F,), float("nan"))}, f"b_enc has {F} values that are not finite"),
    "no k": ("topk", {"k": 0}, "topk needs k from 1"),
    "k beyond F": ("topk", {"k": F + 1}, "topk needs k from 1"),
    "k where there is none": ("relu", {"k": 3}, "relu has no k"),
    "groups that do not sum to F": ("matryoshka", {"groups": (5, 10)}, "sum to d_sae"),
    "an empty group": ("matryoshka", {"groups": (0, F)}, "positive widths"),
    "groups where there are none": ("topk", {"groups": (F,)}, "groups of topk must be none"),
    "metadata that JSON lacks": ("relu", {"metadata": {"a": float("nan")}}, "metadata must be text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_sae_that_cannot_be_is_refused_by_name(case: str) -> None:
    architecture, change, message = REFUSED[case]
    with pytest.raises(TrainError, match=message):
        replace(planted_sae(architecture), **change)
