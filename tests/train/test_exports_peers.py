"""What we save loads in SAELens, dictionary_learning and sparsify and computes the same there, and the other way round.

Runs where these packages are: `make test-peers`.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.planted_saes import ARCHITECTURES, METADATA, D, F, K, planted_sae, rows
from train import exports
from train.exports import EXPORTS, sae_lens
from train.inference import InferenceSAE

pytestmark = [
    pytest.mark.skipif(
        not all(find_spec(name) for name in ("sae_lens", "dictionary_learning", "sparsify")),
        reason="needs the other libraries: make test-peers",
    ),
    pytest.mark.filterwarnings("ignore"),  # theirs
]
BOTH = pytest.mark.parametrize("pre_bias", [True, False])
NORMS = pytest.mark.parametrize("unit_norm", [True, False])


def agree(sae: InferenceSAE, theirs: Any, tolerance: float = 1e-5) -> None:
    """Latents, reconstructions of those latents and the whole pass, on rows that switch latents on and off."""
    x_BD = rows()
    with torch.no_grad():
        f_BF = theirs.encode(x_BD)
        assert 0.02 < (f_BF > 0).float().mean() < 0.98
        close(sae.encode(x_BD), f_BF, tolerance)
        close(sae.decode(f_BF), theirs.decode(f_BF), tolerance)
        close(sae.forward(x_BD), theirs(x_BD), tolerance)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def perturb(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights as training leaves them: every one its own, thresholds positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.abs() if name == "threshold" else noise)


def test_no_other_library_takes_group_biases_for_something_it_knows(tmp_path: Path) -> None:
    from sae_lens import SAE

    for architecture in ARCHITECTURES:
        planted_sae(architecture, n_groups=2).save(tmp_path)
        with pytest.raises(Exception, match="with_group_biases"):
            SAE.load_from_disk(tmp_path)
        assert InferenceSAE.load(tmp_path).n_groups == 2


# --- SAELens ----------------------------------------------------------------------------------------------------------


@BOTH
@NORMS
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sae_lens_reads_what_we_save(architecture: str, pre_bias: bool, unit_norm: bool, tmp_path: Path) -> None:
    from sae_lens import SAE

    sae = planted_sae(architecture, pre_bias=pre_bias, unit_norm=unit_norm)
    sae.save(tmp_path)
    theirs = SAE.load_from_disk(tmp_path)
    agree(sae, theirs)
    metadata = theirs.cfg.metadata
    assert {name: metadata[name] for name in METADATA} == METADATA
    assert metadata.training_architecture == architecture


@BOTH
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_we_read_what_sae_lens_saves(architecture: str, rescale: bool, pre_bias: bool, tmp_path: Path) -> None:
    from sae_lens.registry import get_sae_class

    kind, configuration = get_sae_class(architecture)
    settings = {"k": K, "rescale_acts_by_decoder_norm": rescale} if architecture == "topk" else {}
    theirs = kind(configuration(d_in=D, d_sae=F, apply_b_dec_to_input=pre_bias, **settings))
    theirs.cfg.metadata.hook_name = "blocks.5.hook_resid_post"
    perturb(theirs)
    theirs.save_model(tmp_path)
    sae = sae_lens.load(tmp_path)
    agree(sae, theirs)
    assert sae.metadata["layer"] == 5


TRAINED = {
    "standard": {},
    "gated": {},
    "jumprelu": {},
    "topk": {"k": K},
    "batchtopk": {"k": K + 0.5},
    "matryoshka_batchtopk": {"k": K, "matryoshka_widths": [8, 16, F]},
}


@pytest.mark.parametrize("architecture", TRAINED)
def test_we_read_both_forms_that_sae_lens_trainer_leaves(architecture: str, tmp_path: Path) -> None:
    """Its checkpoints (thresholds as one number, norms not folded) and its inference models are one SAE."""
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class

    kind, configuration = get_sae_training_class(architecture)
    theirs = kind(configuration(d_in=D, d_sae=F, **TRAINED[architecture]))
    perturb(theirs)
    if hasattr(theirs, "topk_threshold"):
        theirs.topk_threshold.fill_(0.7)
    theirs.save_model(tmp_path / "checkpoint")
    theirs.save_inference_model(tmp_path / "inference")
    inference = SAE.load_from_disk(tmp_path / "inference")
    agree(sae_lens.load(tmp_path / "inference"), inference)
    agree(sae_lens.load(tmp_path / "checkpoint"), inference)


@pytest.mark.parametrize("architecture", TRAINED)
def test_we_fold_a_checkpoint_of_scaled_activations_as_sae_lens_does(architecture: str, tmp_path: Path) -> None:
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.activation_scaler import ActivationScaler

    kind, configuration = get_sae_training_class(architecture)
    normalise = {"normalize_activations": "expected_average_only_in"}
    theirs = kind(configuration(d_in=D, d_sae=F, **TRAINED[architecture], **normalise))
    perturb(theirs)
    if hasattr(theirs, "topk_threshold"):
        theirs.topk_threshold.fill_(0.7)
    theirs.save_model(tmp_path / "checkpoint")
    ActivationScaler(scaling_factor=0.8).save(str(tmp_path / "checkpoint" / "activation_scaler.json"))
    theirs.fold_activation_norm_scaling_factor(0.8)
    theirs.save_inference_model(tmp_path / "inference")
    agree(sae_lens.load(tmp_path / "checkpoint"), SAE.load_from_disk(tmp_path / "inference"))


# --- dictionary_learning ----------------------------------------------------------------------------------------------


@BOTH
@NORMS
@pytest.mark.parametrize("one_threshold", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dictionary_learning_reads_what_we_save(
    architecture: str, one_threshold: bool, unit_norm: bool, pre_bias: bool, tmp_path: Path
) -> None:
    from dictionary_learning.utils import load_dictionary

    sae = planted_sae(architecture, pre_bias=pre_bias, unit_norm=unit_norm, one_threshold=one_threshold)
    EXPORTS["dictionary_learning"].save(sae, tmp_path)
    theirs, config = load_dictionary(str(tmp_path), "cpu")
    agree(sae, theirs)
    assert (config["trainer"]["layer"], config["trainer"]["lm_name"]) == (12, "google/gemma-2-2b")


DICT_CLASSES = {
    "AutoEncoder": {},
    "AutoEncoderNew": {},
    "GatedAutoEncoder": {},
    "JumpReluAutoEncoder": {},
    "AutoEncoderTopK": {"k": K},
    "BatchTopKSAE": {"k": K},
    "MatryoshkaBatchTopKSAE": {"k": K, "group_sizes": [10, 10, 20]},
}


@pytest.mark.parametrize("threshold", [-1.0, 0.4])
@pytest.mark.parametrize("name", DICT_CLASSES)
def test_we_read_every_class_of_dictionary_learning(name: str, threshold: float, tmp_path: Path) -> None:
    """Also with the threshold of −1 that a batch top-k SAE has before it has learned one."""
    from dictionary_learning import utils

    theirs = getattr(utils, name)(D, F, **DICT_CLASSES[name])
    perturb(theirs)
    if name not in ("JumpReluAutoEncoder",) and hasattr(theirs, "threshold"):
        theirs.threshold.fill_(threshold)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "k": K}}))
    loaded, _ = utils.load_dictionary(str(tmp_path), "cpu")
    agree(exports.load(tmp_path), loaded)


def batches() -> Iterator[Tensor]:
    for step in range(1000):
        yield rows(seed=step)


def trainers() -> dict[str, dict[str, Any]]:
    """The library's trainers, a few steps each."""
    from dictionary_learning import trainers as theirs
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    l1 = {"l1_penalty": 0.01, "sparsity_warmup_steps": 2}
    top_k = {"k": K, "threshold_start_step": 0, "threshold_beta": 0.5}
    groups = {"group_fractions": [0.25, 0.25, 0.5]}
    return {
        "StandardTrainer": {"trainer": theirs.StandardTrainer} | l1,
        "StandardTrainerAprilUpdate": {"trainer": StandardTrainerAprilUpdate} | l1,
        "GatedSAETrainer": {"trainer": theirs.GatedSAETrainer} | l1,
        "JumpReluTrainer": {"trainer": theirs.JumpReluTrainer, "sparsity_warmup_steps": 2},
        "TopKTrainer": {"trainer": theirs.TopKTrainer} | top_k,
        "BatchTopKTrainer": {"trainer": theirs.BatchTopKTrainer} | top_k,
        "MatryoshkaBatchTopKTrainer": {"trainer": MatryoshkaBatchTopKTrainer} | top_k | groups,
    }


TRAINERS = (
    "StandardTrainer",
    "StandardTrainerAprilUpdate",
    "GatedSAETrainer",
    "JumpReluTrainer",
    "TopKTrainer",
    "BatchTopKTrainer",
    "MatryoshkaBatchTopKTrainer",
)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", TRAINERS)
def test_we_read_what_dictionary_learning_trains(name: str, normalise: bool, tmp_path: Path) -> None:
    from dictionary_learning.training import trainSAE
    from dictionary_learning.utils import load_dictionary

    common = {
        "steps": 8,
        "activation_dim": D,
        "dict_size": F,
        "layer": 12,
        "lm_name": "google/gemma-2-2b",
        "submodule_name": "resid_post_layer_12",
        "lr": 1e-2,
        "warmup_steps": 1,
        "device": "cpu",
        "seed": 0,
    }
    trainSAE(
        batches(),
        [common | trainers()[name]],
        steps=8,
        save_dir=str(tmp_path),
        normalize_activations=normalise,
        device="cpu",
    )
    loaded, _ = load_dictionary(str(tmp_path / "trainer_0"), "cpu")
    sae = exports.load(tmp_path / "trainer_0")
    agree(sae, loaded)
    assert sae.metadata["hook_name"] == "blocks.12.hook_resid_post"


# --- sparsify ---------------------------------------------------------------------------------------------------------


class Dense:
    """A SparseCoder with its latents as a dense matrix."""

    def __init__(self, coder: Any) -> None:
        self.coder = coder

    def encode(self, x_BD: Tensor) -> Tensor:
        values_BK, indices_BK, _ = self.coder.encode(x_BD)
        return torch.zeros(len(x_BD), F).scatter(1, indices_BK, values_BK)

    def decode(self, f_BF: Tensor) -> Tensor:
        values_BK, indices_BK = f_BF.topk(K)
        return self.coder.decode(values_BK, indices_BK)

    def __call__(self, x_BD: Tensor) -> Tensor:
        return self.coder(x_BD).sae_out


@BOTH
@NORMS
def test_sparsify_reads_what_we_save(unit_norm: bool, pre_bias: bool, tmp_path: Path) -> None:
    from sparsify import SparseCoder

    sae = planted_sae("topk", pre_bias=pre_bias, unit_norm=unit_norm)
    EXPORTS["sparsify"].save(sae, tmp_path)
    agree(sae, Dense(SparseCoder.load_from_disk(tmp_path)))


@pytest.mark.parametrize("sizes", [{"num_latents": F}, {"expansion_factor": 4}])
def test_we_read_what_sparsify_saves(sizes: dict[str, int], tmp_path: Path) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(D, SparseCoderConfig(k=K, **sizes))
    perturb(coder)
    coder.save_to_disk(tmp_path)
    x_BD, sae = rows(), exports.load(tmp_path)
    values_BK, indices_BK, _ = coder.encode(x_BD)
    f_BF = torch.zeros(len(x_BD), sae.d_sae).scatter(1, indices_BK, values_BK)
    close(sae.encode(x_BD), f_BF, 1e-5)
    close(sae.forward(x_BD), coder(x_BD).sae_out, 1e-5)
