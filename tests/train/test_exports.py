"""Trained SAEs as files: what is written comes back, and what cannot be held or honoured is refused."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.train.planted_saes import ARCHITECTURES, METADATA, D, F, K, planted_sae, rows, same_function
from train import exports
from train.errors import TrainError
from train.exports import EXPORTS, dictionary_learning, sae_lens, sparsify
from train.folding import fold_decoder_norms
from train.inference import InferenceSAE

HELD = [(name, architecture) for name, kind in EXPORTS.items() for architecture in kind.architectures]


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_sae_comes_back_bit_for_bit(architecture: str, pre_bias: bool, unit_norm: bool, tmp_path: Path) -> None:
    sae = planted_sae(architecture, pre_bias=pre_bias, unit_norm=unit_norm)
    sae.save(tmp_path / "sae")
    back = InferenceSAE.load(tmp_path / "sae")
    for name in InferenceSAE.TENSORS:
        before, after = getattr(sae, name), getattr(back, name)
        assert (before is None and after is None) or torch.equal(before, after), name
    for name in ("architecture", "k", "groups", "apply_b_dec_to_input", "metadata"):
        assert getattr(back, name) == getattr(sae, name), name


@pytest.mark.parametrize("one_threshold", [True, False])
@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize(("name", "architecture"), HELD)
def test_every_format_gives_back_the_same_sae(
    name: str, architecture: str, pre_bias: bool, unit_norm: bool, one_threshold: bool, tmp_path: Path
) -> None:
    sae = planted_sae(architecture, pre_bias=pre_bias, unit_norm=unit_norm, one_threshold=one_threshold)
    EXPORTS[name].save(sae, tmp_path)
    back = EXPORTS[name].load(tmp_path)
    assert (back.architecture, back.k, back.groups, back.metadata) == (architecture, sae.k, sae.groups, METADATA)
    same_function(sae, back, rows())


@pytest.mark.parametrize(("name", "architecture"), HELD)
def test_the_same_sae_is_the_same_bytes(name: str, architecture: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        EXPORTS[name].save(planted_sae(architecture), tmp_path / folder)
    for file in EXPORTS[name].files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_half_precision_is_saved_as_the_float32_that_it_is(tmp_path: Path) -> None:
    half = planted_sae("jumprelu").to(dtype=torch.bfloat16)
    half.save(tmp_path)
    assert torch.equal(InferenceSAE.load(tmp_path).W_dec, half.W_dec.float())


def test_a_layer_names_its_hook_for_sae_lens_and_does_not_come_back_as_ours(tmp_path: Path) -> None:
    sae = replace(planted_sae("relu"), metadata={"layer": 7})
    sae.save(tmp_path)
    written = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert written["hook_name"] == "blocks.7.hook_resid_post"
    assert InferenceSAE.load(tmp_path).metadata == {"layer": 7}


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "topk"])
def test_sparsify_refuses_everything_but_topk(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="sparsify holds topk alone"):
        sparsify.save(planted_sae(architecture), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_relu_sae_that_its_reader_would_rescale_goes_to_the_class_that_does_not() -> None:
    assert dictionary_learning.dict_class(planted_sae("relu")) == "AutoEncoder"
    assert dictionary_learning.dict_class(planted_sae("relu", unit_norm=False)) == "AutoEncoderNew"
    assert dictionary_learning.dict_class(planted_sae("relu", pre_bias=False)) == "AutoEncoderNew"


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_several_thresholds_go_to_the_class_that_has_one_a_latent(architecture: str) -> None:
    assert dictionary_learning.dict_class(planted_sae(architecture, one_threshold=True)) != "JumpReluAutoEncoder"
    assert dictionary_learning.dict_class(planted_sae(architecture)) == "JumpReluAutoEncoder"


# --- exporting a run --------------------------------------------------------------------------------------------------


def test_a_run_is_exported_in_every_format_asked_for(tmp_path: Path) -> None:
    sae = planted_sae("topk")
    sae.save(tmp_path / "run" / "sae")
    made = exports.export(tmp_path / "run", list(EXPORTS), tmp_path / "out")
    assert made == [tmp_path / "out" / name for name in EXPORTS]
    for folder in made:
        same_function(sae, exports.load(folder), rows())


def test_an_export_that_cannot_hold_the_sae_stops_before_anything_is_written(tmp_path: Path) -> None:
    planted_sae("gated").save(tmp_path / "run" / "sae")
    with pytest.raises(TrainError, match="sparsify holds topk alone"):
        exports.export(tmp_path / "run", ["sae_lens", "sparsify"], tmp_path / "out")
    with pytest.raises(TrainError, match="format must be one of sae_lens, dictionary_learning, sparsify, got 'onnx'"):
        exports.export(tmp_path / "run", ["sae_lens", "onnx"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_an_sae_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"holds no trained SAE .*sae_weights\.safetensors.*ae\.pt.*sae\.safetensors"):
        exports.load(tmp_path)


# --- what other libraries write ---------------------------------------------------------------------------------------


def written(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor | None]) -> Path:
    """A SAELens folder as another program leaves it."""
    weights = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    safetensors.torch.save_file(weights, folder / "sae_weights.safetensors")
    sizes = {"d_in": D, "d_sae": F, "dtype": "float32", "metadata": {"sae_lens_version": "6.30.0"}}
    (folder / "cfg.json").write_text(json.dumps(sizes | dict(config)))
    return folder


def test_a_configuration_from_before_release_6_is_read(tmp_path: Path) -> None:
    sae = planted_sae("relu")
    old = {"hook_point": "blocks.3.hook_resid_pre", "model_name": "gpt2-small", "metadata": None}
    ones = {"scaling_factor": torch.ones(F)}
    back = sae_lens.load(written(tmp_path, old, sae.tensors() | ones))
    same_function(sae, back, rows())
    assert back.metadata == {"hook_name": "blocks.3.hook_resid_pre", "model_name": "gpt2-small", "layer": 3}


def test_topk_from_before_release_6_keeps_its_k(tmp_path: Path) -> None:
    sae = planted_sae("topk")
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "hook_name": "x", "metadata": None}
    same_function(sae, sae_lens.load(written(tmp_path, old, sae.tensors())), rows())


@pytest.mark.parametrize(("architecture", "ours"), [("batchtopk", "batchtopk"), ("matryoshka_batchtopk", "matryoshka")])
def test_a_training_checkpoint_has_its_threshold_and_norms_folded(architecture: str, ours: str, tmp_path: Path) -> None:
    sae = planted_sae(ours, unit_norm=False, one_threshold=True)
    tensors = sae.tensors()
    tensors["topk_threshold"] = tensors.pop("threshold")[0].double()
    config = {
        "architecture": architecture,
        "k": K + 0.2,
        "matryoshka_widths": [5, 15],
        "rescale_acts_by_decoder_norm": True,
    }
    back = sae_lens.load(written(tmp_path, config, tensors))
    assert (back.architecture, back.k, back.groups) == (ours, K, sae.groups)
    same_function(fold_decoder_norms(sae, norm_weighted=True), back, rows())


def test_a_scale_beside_the_weights_is_folded(tmp_path: Path) -> None:
    sae, scaling = planted_sae("relu"), 0.25
    config = {"architecture": "standard", "normalize_activations": "expected_average_only_in"}
    folder = written(tmp_path, config, sae.tensors())
    with pytest.raises(TrainError, match="its scale is not in its files"):
        sae_lens.load(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scaling}))
    back, x_BD = sae_lens.load(folder), rows()
    torch.testing.assert_close(back.encode(x_BD / scaling), sae.encode(x_BD), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back.forward(x_BD / scaling), sae.forward(x_BD) / scaling, rtol=1e-5, atol=1e-5)


NOT_HONOURED = {
    "layer norm": ({"normalize_activations": "layer_norm"}, "cannot be expressed as weights"),
    "whitening": ({"normalize_activations": "covariance_whitening"}, "cannot be expressed as weights"),
    "attention heads": ({"reshape_activations": "hook_z"}, "attention heads"),
    "another architecture": ({"architecture": "matching_pursuit"}, "architecture must be one of standard, topk"),
    "a top-k without k": ({"architecture": "topk"}, "needs 'k' as int, got nothing"),
    "k as text": ({"architecture": "topk", "k": "32"}, "needs 'k' as int, got '32'"),
    "an unknown activation": (
        {"activation_fn_str": "tanh-relu", "metadata": None},
        "activation_fn must be relu or topk",
    ),
    "heads before release 6": ({"hook_name": "blocks.0.attn.hook_z", "metadata": None}, "attention heads"),
    "another width": ({"d_in": D + 1}, r"W_enc must be \[13, 40\], got \[12, 40\]"),
}


@pytest.mark.parametrize("case", NOT_HONOURED)
def test_what_an_sae_cannot_express_is_refused_rather_than_ignored(case: str, tmp_path: Path) -> None:
    change, message = NOT_HONOURED[case]
    with pytest.raises(TrainError, match=message):
        sae_lens.load(written(tmp_path, {"architecture": "standard"} | change, planted_sae("relu").tensors()))


@pytest.mark.parametrize("setting", ["transcode", "skip_connection"])
def test_a_transcoder_is_no_sae(setting: str, tmp_path: Path) -> None:
    sparsify.save(planted_sae("topk"), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {setting: True}))
    with pytest.raises(TrainError, match=f"has {setting}"):
        sparsify.load(tmp_path)


def test_groupmax_is_not_topk(tmp_path: Path) -> None:
    sparsify.save(planted_sae("topk"), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"activation": "groupmax"}))
    with pytest.raises(TrainError, match="activation must be topk, got 'groupmax'"):
        sparsify.load(tmp_path)


def test_an_unknown_dict_class_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "IdentityDict"}}))
    with pytest.raises(TrainError, match="dict_class must be one of AutoEncoder, AutoEncoderNew"):
        dictionary_learning.load(tmp_path)


def relabelled(folder: Path, **trainer: Any) -> Path:
    """A folder of ours as another program's, with fields of its trainer changed."""
    config = json.loads((folder / "config.json").read_text())
    del config["silo"]
    config["trainer"] |= trainer
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_class_of_the_temporal_fork_is_its_parent(tmp_path: Path) -> None:
    sae = planted_sae("matryoshka", one_threshold=True)
    dictionary_learning.save(sae, tmp_path)
    back = dictionary_learning.load(relabelled(tmp_path, dict_class="TemporalMatryoshkaBatchTopKSAE", temporal=True))
    assert back.groups == sae.groups
    same_function(sae, back, rows())


def test_a_topk_file_from_before_there_were_thresholds_is_read(tmp_path: Path) -> None:
    sae = planted_sae("topk")
    dictionary_learning.save(sae, tmp_path)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    del state["threshold"]
    torch.save(state, tmp_path / "ae.pt")
    same_function(sae, dictionary_learning.load(relabelled(tmp_path)), rows())


def test_two_values_of_k_are_refused(tmp_path: Path) -> None:
    dictionary_learning.save(planted_sae("topk"), tmp_path)
    with pytest.raises(TrainError, match=f"says k = {K + 1}"):
        dictionary_learning.load(relabelled(tmp_path, k=K + 1))
