"""sparsify: `cfg.json` and `sae.safetensors`, read there by `SparseCoder.load_from_disk` (checked with 1.3.3).

It holds one architecture, topk, and nothing about the model that the rows came from; that lies in our object `silo`.
Shapes: D d_model, F d_sae.
"""

from pathlib import Path
from typing import Final

import safetensors.torch

from train.errors import TrainError
from train.exports.files import (
    OURS,
    Document,
    built,
    check_linear,
    ours,
    read,
    restored,
    safetensors_weights,
    take,
    write,
)
from train.folding import with_pre_bias
from train.inference import InferenceSAE

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_REFUSED: Final = {
    "transcode": "a transcoder predicts another module's output",
    "skip_connection": "a skip connection has no place in an SAE",
    "signed": "signed latents are negative",
}


def save(sae: InferenceSAE, folder: Path) -> None:
    """Write a topk SAE.

    Raises:
        TrainError: another architecture, group biases, or the folder cannot be written.
    """
    check_linear(sae, "sparsify")
    if sae.architecture != "topk":
        raise TrainError(
            f"sparsify holds topk alone, got {sae.architecture}: export to sae_lens or dictionary_learning"
        )
    same = with_pre_bias(sae, True)
    tensors = {"encoder.weight": same.W_enc.T, "encoder.bias": same.b_enc, "W_dec": same.W_dec, "b_dec": same.b_dec}
    weights = safetensors.torch.save({k: v.float().cpu().contiguous() for k, v in tensors.items() if v is not None})
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_model),
        "normalize_decoder": True,
        "num_latents": sae.d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_model,
        OURS: ours(sae, weights) | {"metadata": dict(sae.metadata)},
    }
    write(folder, (WEIGHTS, weights), (CONFIG, config))


def load(folder: Path) -> InferenceSAE:
    """Read an SAE that we or sparsify saved.

    Raises:
        TrainError: missing, damaged, or more than a topk SAE: a transcoder, groupmax, a skip connection.
    """
    config = Document.read(folder / CONFIG)
    if (activation := config.get("activation", str, "topk")) != "topk":
        raise TrainError(f"{config.path}: activation must be topk, got {activation!r}")
    for name, why in _REFUSED.items():
        if config.get(name, bool, False):
            raise TrainError(f"{config.path} has {name}: {why}; not loadable")
    path, content = folder / WEIGHTS, read(folder / WEIGHTS)
    restored(config, content, ("topk",))
    d = config.get("d_in", int)
    f = config.get("num_latents", int, 0) or d * config.get("expansion_factor", int)
    shapes = {"encoder.weight": (f, d), "encoder.bias": (f,), "W_dec": (f, d), "b_dec": (d,)}
    weights = take(path, safetensors_weights(path, content), shapes)
    return built(
        path,
        architecture="topk",
        k=config.get("k", int),
        W_enc=weights["encoder.weight"].T.contiguous(),
        W_dec=weights["W_dec"],
        b_enc=weights["encoder.bias"],
        b_dec=weights["b_dec"],
        metadata=config.within(OURS).within("metadata").scalars(),
    )
