"""Core statistics against known answers and against the definitions written out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evals import core as core_module
from evals.chunks import Chunk
from evals.core import Batch, CoreSums, core, merge
from evals.core_weights import max_cosines
from evals.errors import EvalError
from evals.scores import Definition, Scores
from evals.sparse_codes import decode, encode
from tests.evals.planted_texts import LAYER, D, identity_sae, random_sae, texts, write_rows
from tests.train.planted_saes import ARCHITECTURES, planted_sae, rows
from train.inference import InferenceSAE

LENGTHS = [7, 1, 4, 2, 7, 3, 5, 6, 1, 2, 3]


def chunk(x_RD: Tensor, sequences: int = 1) -> Chunk:
    n = len(x_RD)
    documents = np.zeros((sequences, n // sequences), np.int32)
    return Chunk(
        start=0, stop=sequences, tokens_nT=documents, document_nT=documents, x_RD=x_RD, place_R=torch.arange(n)
    )


def numbers_of(batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Core numbers of rows and what stands for their reconstructions, batch by batch."""
    sae = random_sae(d=batches[0][0].shape[1])
    sums = CoreSums(sae.d_model, sae.d_sae)
    for x_RD, x_hat_RD in batches:
        sums.add(Batch.of(chunk(x_RD)), encode(sae, x_RD), x_hat_RD)
    return sums.numbers()


def test_the_three_explained_variances_of_rows_far_from_the_origin() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(20):
        x_RD = torch.randn(2000, 64, generator=generator) + 3.0
        batches.append((x_RD, x_RD + 0.5 * torch.randn(2000, 64, generator=generator)))
    numbers = numbers_of(batches)
    assert numbers["explained_variance_true"] == pytest.approx(0.75, abs=0.002)
    assert numbers["explained_variance_legacy"] == pytest.approx(1 - 0.25 * 64 / 62, abs=0.003)  # E[1/χ²] is 1/(d - 2)
    assert numbers["explained_variance"] == pytest.approx(1 - 16 / (640 - 10**2), abs=0.002)
    assert numbers["mse"] == pytest.approx(16 / 2000, rel=0.01)
    assert numbers["mse_per_dim"] == pytest.approx(0.25, rel=0.01)


def test_explained_variance_survives_a_mean_a_thousand_times_the_spread() -> None:
    x_RD = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    x_hat_RD = x_RD * 0.5
    assert numbers_of([(x_RD + 1000, x_hat_RD + 1000)])["explained_variance_true"] == pytest.approx(0.75, abs=0.01)


def test_a_perfect_reconstruction_has_perfect_numbers() -> None:
    x_RD = torch.randn(100, 16, generator=torch.Generator().manual_seed(0)) + 1
    numbers = numbers_of([(x_RD, x_RD)])
    for key in ("explained_variance", "explained_variance_legacy", "explained_variance_true", "cossim", "l2_ratio"):
        assert numbers[key] == pytest.approx(1, abs=1e-6), key
    assert numbers["mse"] == numbers["mse_per_dim"] == 0
    assert numbers["relative_reconstruction_bias"] == pytest.approx(1)


def test_half_a_reconstruction_is_shrinkage_and_not_a_turn() -> None:
    x_RD = torch.randn(100, 16, generator=torch.Generator().manual_seed(0)) + 1
    numbers = numbers_of([(x_RD, x_RD / 2)])
    assert numbers["cossim"] == pytest.approx(1, abs=1e-6)
    assert numbers["l2_ratio"] == pytest.approx(0.5)
    assert numbers["relative_reconstruction_bias"] == pytest.approx(0.5)
    assert numbers["l2_norm_out"] == pytest.approx(numbers["l2_norm_in"] / 2)


def direct(sae: InferenceSAE, batches: list[Tensor]) -> dict[str, float]:
    """SAEBench's definitions over all rows at once, in float64."""
    x_RD = torch.cat(batches).double()
    f_RF = sae.encode(x_RD.float()).double()
    x_hat_RD = f_RF @ sae.W_dec.double() + sae.b_dec.double()
    error_R = (x_RD - x_hat_RD).square().sum(1)
    size_R = torch.cat([torch.full((len(one),), float(len(one))) for one in batches])
    centred_R = torch.cat([(one.double() - one.double().mean(0)).square().sum(1) for one in batches])
    parts = x_hat_RD.split([len(one) for one in batches])
    biases = [
        (part.square().sum(1).mean() / (one.double() * part).sum(1).mean())
        for part, one in zip(parts, batches, strict=True)
    ]
    numbers = {
        "mse": (error_R / size_R).mean(),
        "explained_variance_legacy": (1 - error_R / centred_R).mean(),
        "explained_variance_true": 1 - error_R.mean() / (x_RD - x_RD.mean(0)).square().sum(1).mean(),
        "cossim": torch.cosine_similarity(x_RD, x_hat_RD).mean(),
        "l2_norm_in": x_RD.norm(dim=1).mean(),
        "l2_norm_out": x_hat_RD.norm(dim=1).mean(),
        "l2_ratio": (x_hat_RD.norm(dim=1) / x_RD.norm(dim=1)).mean(),
        "relative_reconstruction_bias": torch.stack(biases).mean(),
        "l0": (f_RF != 0).sum(1).double().mean(),
        "l1": f_RF.sum(1).mean(),
    }
    return {key: float(value) for key, value in numbers.items()}


@pytest.mark.parametrize("architecture", ["relu", "topk", "jumprelu", "gated"])
def test_streaming_over_a_cache_is_the_definition_over_its_tokens(architecture: str, tmp_path: Path) -> None:
    x_NTD, tokens_NT, document_NT = texts(LENGTHS)
    reader = write_rows(tmp_path / "core", x_NTD, tokens_NT, document_NT, packing="pack")
    saes = [random_sae(architecture=architecture, seed=seed) for seed in (0, 1)]
    found = core(saes, reader, LAYER, start=2, batch=3)
    own = [torch.from_numpy(x_NTD[i, 1 : 1 + length]) for i, length in enumerate(LENGTHS)]
    batches = [torch.cat(own[at : at + 3]) for at in range(2, len(own), 3)]
    for sae, scores in zip(saes, found, strict=True):
        scores.check("planted")
        numbers = scores.numbers()
        for key, value in direct(sae, batches).items():
            assert numbers[key] == pytest.approx(value, rel=1e-4), key
        f_RF = sae.encode(torch.cat(batches)) > 0
        density_F = f_RF.double().mean(0)
        prompts_F = torch.stack([(sae.encode(one) > 0).any(0) for one in own[2:]]).sum(0)
        assert numbers["frac_alive"] == float((density_F > 0).double().mean())
        assert numbers["freq_over_10_percent"] == float((density_F > 0.1).double().mean())
        share = float(density_F[density_F > 0.1].sum() / density_F.sum())
        assert numbers["normalized_freq_over_10_percent"] == pytest.approx(share)
        for entry in scores.details:
            assert entry["feature_density"] == pytest.approx(float(density_F[entry["index"]]), abs=1e-6)
            if prompts_F[entry["index"]]:
                per_prompt = float(f_RF[:, entry["index"]].sum() / prompts_F[entry["index"]])
                assert entry["consistent_activation_heuristic"] == pytest.approx(per_prompt, abs=1e-6)
            else:
                assert entry["consistent_activation_heuristic"] is None
        assert numbers["total_tokens_eval_sparsity_variance"] == 9 * 8


def test_special_tokens_never_enter_core(tmp_path: Path) -> None:
    x_NTD, tokens_NT, document_NT = texts(LENGTHS)
    reader = write_rows(tmp_path / "core", x_NTD, tokens_NT, document_NT, packing="pack")
    [scores] = core([identity_sae()], reader, LAYER)
    assert scores.numbers()["l2_norm_in"] < 10  # BOS and padding hold norms of 4000
    assert scores.numbers()["l0"] == D


def test_weight_statistics_are_those_of_the_weights(tmp_path: Path) -> None:
    sae = random_sae()
    reader = write_rows(tmp_path / "core", *texts(LENGTHS), packing="pack")
    [scores] = core([sae], reader, LAYER)
    unit_FD = torch.nn.functional.normalize(sae.W_dec, dim=1)
    cosines_FF = (unit_FD @ unit_FD.T).fill_diagonal_(-1)
    both_F = torch.cosine_similarity(sae.W_enc.T, sae.W_dec)
    for entry in scores.details:
        j = entry["index"]
        assert entry["max_decoder_cosine_sim"] == pytest.approx(float(cosines_FF[j].max()), abs=1e-5)
        assert entry["encoder_norm"] == pytest.approx(float(sae.W_enc[:, j].norm()), rel=1e-5)
        assert entry["encoder_decoder_cosine_sim"] == pytest.approx(float(both_F[j]), abs=1e-5)
        assert sae.b_enc is not None
        assert entry["encoder_bias"] == pytest.approx(float(sae.b_enc[j]), abs=1e-6)
    mean = scores.numbers()["average_max_decoder_cosine_sim"]
    assert mean == pytest.approx(float(cosines_FF.max(1).values.mean()), abs=1e-5)


@pytest.mark.parametrize("block_bytes", [4, 400, 2**20])
def test_largest_cosines_are_the_same_whatever_the_blocks(block_bytes: int) -> None:
    w_FD = torch.randn(37, 5, generator=torch.Generator().manual_seed(0))
    unit_FD = torch.nn.functional.normalize(w_FD, dim=1)
    expected_F = (unit_FD @ unit_FD.T).fill_diagonal_(-2).max(1).values
    torch.testing.assert_close(max_cosines(w_FD, block_bytes=block_bytes), expected_F)


def test_core_has_exactly_saebenchs_keys_with_null_for_what_needs_the_model(tmp_path: Path) -> None:
    reader = write_rows(tmp_path / "core", *texts(LENGTHS), packing="pack")
    [scores] = core([random_sae()], reader, LAYER)
    from evals.saebench.schema import check

    check("core", scores.metrics, scores.details)
    assert scores.metrics["model_performance_preservation"]["ce_loss_score"] is None
    assert scores.extra.keys() == {"explained_variance_true", "mse_per_dim"}


def test_the_models_half_is_merged_and_contradictions_are_refused(tmp_path: Path) -> None:
    reader = write_rows(tmp_path / "core", *texts(LENGTHS), packing="pack")
    [scores] = core([random_sae()], reader, LAYER)
    loss = Scores(
        eval_type="core",
        config={"n_eval_reconstruction_batches": 3},
        metrics={"model_performance_preservation": {"ce_loss_score": 0.9}, "sparsity": {"l0": None}},
        definitions={"ce_loss_score": Definition(tag="v0.6", text="planted")},
    )
    both = merge(scores, loss)
    both.check("planted")
    assert both.metrics["model_performance_preservation"]["ce_loss_score"] == 0.9
    assert both.metrics["sparsity"]["l0"] == scores.metrics["sparsity"]["l0"]
    assert both.config["n_eval_reconstruction_batches"] == 3
    assert both.details == scores.details
    with pytest.raises(EvalError, match="l0"):
        merge(scores, replace(loss, metrics={"sparsity": {"l0": 1.0}}))


@pytest.mark.parametrize("n_groups", [0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reconstructions_from_entries_are_those_from_dense_codes(architecture: str, n_groups: int) -> None:
    sae, x_RD = planted_sae(architecture, n_groups=n_groups), rows()
    torch.testing.assert_close(decode(sae, encode(sae, x_RD)), sae.forward(x_RD), rtol=1e-5, atol=1e-5)


def test_a_cache_without_rows_that_count_is_refused(tmp_path: Path) -> None:
    reader = write_rows(tmp_path / "core", *texts([0, 0]), packing="pack")
    with pytest.raises(EvalError, match="rows"):
        core([random_sae()], reader, LAYER)


def test_no_matrix_of_rows_by_latents_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = write_rows(tmp_path / "core", *texts(LENGTHS * 20), packing="pack")
    sae, largest = random_sae(f=1024, architecture="jumprelu"), 0
    monkeypatch.setattr("evals.sparse_codes._AT_ONCE", 1024)
    monkeypatch.setattr("evals.sparse_codes._FEWEST", 4)
    inner = core_module.sparse_codes._encode

    def watched(sae: InferenceSAE, x_RD: Tensor) -> object:
        nonlocal largest
        largest = max(largest, len(x_RD) * sae.d_sae)
        return inner(sae, x_RD)

    monkeypatch.setattr("evals.sparse_codes._encode", watched)
    core([sae], reader, LAYER)
    assert largest == 4 * 1024
