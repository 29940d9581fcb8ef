"""Our SAEs with the interface of SAEBench's custom SAEs (reference: SAEBench 0.6.0, custom_saes/)."""

import pytest
import torch
from torch import nn

from evals.saebench.adapter import SAEBenchSAE
from tests.train.planted_saes import ARCHITECTURES, D, F, planted_sae, rows

CONFIG = {
    "model_name", "d_in", "d_sae", "hook_layer", "hook_name", "context_size", "hook_head_index", "architecture",
    "apply_b_dec_to_input", "finetuning_scaling_factor", "activation_fn_str", "activation_fn_kwargs", "prepend_bos",
    "normalize_activations", "dtype", "device", "model_from_pretrained_kwargs", "dataset_path",
    "dataset_trust_remote_code", "seqpos_slice", "training_tokens", "sae_lens_training_version", "neuronpedia_id",
}  # fmt: skip


@pytest.mark.parametrize("n_groups", [0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_has_what_saebench_asks_of_a_custom_sae(architecture: str, n_groups: int) -> None:
    sae = planted_sae(architecture, n_groups=n_groups)
    one = SAEBenchSAE(sae, "google/gemma-2-2b", 12)
    assert isinstance(one, nn.Module)
    assert {tuple(one.W_enc.shape), tuple(one.W_dec.T.shape)} == {(D, F)}
    assert (tuple(one.b_enc.shape), tuple(one.b_dec.shape)) == ((F,), (D,))
    assert set(one.cfg.to_dict()) == CONFIG
    assert (one.cfg.model_name, one.cfg.hook_name, one.cfg.d_sae) == ("gemma-2-2b", "blocks.12.hook_resid_post", F)
    for x in (rows(n=6), rows(n=6).reshape(2, 3, D)):  # [B, D] and [B, L, D]
        f = one.encode(x)
        assert torch.equal(f, sae.encode(x))
        assert (f >= 0).all()
        assert torch.equal(one(x), sae.decode(sae.encode(x)))


def test_it_moves_as_a_module_does() -> None:
    one = SAEBenchSAE(planted_sae("jumprelu"), "gemma-2-2b", 12)
    assert one.to(device="cpu", dtype=torch.bfloat16) is one
    assert one.dtype == one.W_dec.dtype == one.encode(rows()).dtype == torch.bfloat16
    assert one.cfg.dtype == "bfloat16"
    assert one.b_enc.dtype == torch.float32
    assert one.to(torch.float32).dtype == torch.float32


def test_saebench_may_write_to_its_config() -> None:
    one = SAEBenchSAE(planted_sae("topk"), "gemma-2-2b", 12)
    one.cfg.metadata = object()  # type: ignore[attr-defined]
    assert set(one.cfg.to_dict()) == CONFIG
