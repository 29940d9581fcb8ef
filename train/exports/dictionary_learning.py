"""dictionary_learning: `config.json` and `ae.pt`, read there by `utils.load_dictionary` (checked with 0.1.0).

Each class of that library has its own names and its own idea of the bias before the encoder; the table says which.
Its `ae.pt` is torch's zip format: we read it with torch's weights-only reader, which runs no code of the file.
Shapes: D d_model, F d_sae.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from train.errors import TrainError
from train.exports.files import (
    OURS,
    Document,
    built,
    check_linear,
    ours,
    read,
    restored,
    take,
    torch_weights,
    write,
)
from train.folding import fold_decoder_norms, with_pre_bias
from train.inference import InferenceSAE, Scalar

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR: Final = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_PLAIN: Final = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


@dataclass(frozen=True)
class DictClass:
    """How one class of dictionary_learning holds an SAE."""

    architecture: str
    trainer: str
    names: Mapping[str, str]
    """Our tensor → its key. Keys that end in .weight belong to nn.Linear and are transposed."""
    pre_bias: bool
    """Whether the class subtracts b_dec from its input."""
    buffers: tuple[str, ...] = ()
    """k and threshold (scalars), group_sizes."""


_TOPK: Final = _LINEAR | {"b_dec": "b_dec"}
_GATED: Final = {
    "W_enc": "encoder.weight",
    "W_dec": "decoder.weight",
    "b_dec": "decoder_bias",
    "b_gate": "gate_bias",
    "b_mag": "mag_bias",
    "r_mag": "r_mag",
}
_ONE_THRESHOLD: Final = ("batchtopk", "matryoshka")
_GROUPED: Final = ("k", "threshold", "group_sizes")
CLASSES: Final = {
    "AutoEncoder": DictClass("relu", "StandardTrainer", _LINEAR | {"b_dec": "bias"}, True),
    "AutoEncoderNew": DictClass("relu", "StandardTrainerAprilUpdate", _LINEAR | {"b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": DictClass("gated", "GatedSAETrainer", _GATED, True),
    "JumpReluAutoEncoder": DictClass("jumprelu", "JumpReluTrainer", _PLAIN | {"threshold": "threshold"}, False),
    "AutoEncoderTopK": DictClass("topk", "TopKTrainer", _TOPK, True, ("k", "threshold")),
    "BatchTopKSAE": DictClass("batchtopk", "BatchTopKTrainer", _TOPK, True, ("k", "threshold")),
    "MatryoshkaBatchTopKSAE": DictClass("matryoshka", "MatryoshkaBatchTopKTrainer", _PLAIN, True, _GROUPED),
    # The T-SAE fork's class: the same tensors, the same code.
    "TemporalMatryoshkaBatchTopKSAE": DictClass(
        "matryoshka", "TemporalMatryoshkaBatchTopKTrainer", _PLAIN, True, _GROUPED
    ),
}


def save(sae: InferenceSAE, folder: Path) -> None:
    """Write an SAE, any architecture, in the class that computes the same.

    Raises:
        TrainError: group biases, metadata that uses a name of ours, or the folder cannot be written.
    """
    check_linear(sae, "dictionary_learning")
    name = dict_class(sae)
    kind = CLASSES[name]
    same = with_pre_bias(sae, kind.pre_bias)
    held = {key: _to_file(key, getattr(same, tensor)) for tensor, key in kind.names.items()}
    stream = io.BytesIO()
    torch.save(held | _buffers(same, kind), stream)
    weights = stream.getvalue()
    own = ours(sae, weights) | {"metadata": dict(sae.metadata)}
    write(folder, (WEIGHTS, weights), (CONFIG, _config(sae, name) | {OURS: own}))


def dict_class(sae: InferenceSAE) -> str:
    """The class that computes the same as this SAE.

    `AutoEncoder` rescales its decoder to norm 1 when it is loaded, and the batch top-k classes have one threshold for
    all latents; what they cannot hold goes to the class that can.
    """
    if sae.architecture == "relu":
        norms_F = sae.W_dec.float().norm(dim=1)
        kept = torch.allclose(norms_F, torch.ones_like(norms_F))  # the test that AutoEncoder makes
        return "AutoEncoder" if kept and sae.apply_b_dec_to_input else "AutoEncoderNew"
    if sae.architecture in _ONE_THRESHOLD and sae.threshold is not None and len(sae.threshold.unique()) > 1:
        return "JumpReluAutoEncoder"
    return next(name for name, kind in CLASSES.items() if kind.architecture == sae.architecture)


def _to_file(key: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().float().cpu()
    return (tensor.T if key.endswith(".weight") else tensor).clone(memory_format=torch.contiguous_format)


def _buffers(sae: InferenceSAE, kind: DictClass) -> dict[str, Tensor]:
    values = {
        "k": torch.tensor(sae.k, dtype=torch.int32),
        # Of a top-k SAE it is unknown; −1 is what the class starts with, and its encode does not use it.
        "threshold": torch.tensor(-1.0 if sae.threshold is None else float(sae.threshold[0])),
        "group_sizes": torch.tensor(sae.groups, dtype=torch.int64),
    }
    return {name: values[name] for name in kind.buffers}


def _config(sae: InferenceSAE, name: str) -> dict[str, Any]:
    meta, kind = sae.metadata, CLASSES[name]
    layer = meta.get("layer")
    trainer = {
        "trainer_class": kind.trainer,
        "dict_class": name,
        "activation_dim": sae.d_model,
        "dict_size": sae.d_sae,
        "layer": layer,
        "lm_name": meta.get("model_name"),
        "submodule_name": None if layer is None else f"resid_post_layer_{layer}",
    }
    if "k" in kind.buffers:
        trainer["k"] = sae.k
    buffer = {"d_submodule": sae.d_model, "io": "out", "ctx_len": meta.get("context_size")}
    return {"trainer": trainer, "buffer": buffer}


def load(folder: Path) -> InferenceSAE:
    """Read an SAE that we or dictionary_learning saved.

    A decoder of class `AutoEncoder` is scaled to norm 1, as that library does whenever it loads one.

    Raises:
        TrainError: missing, damaged, a class that we do not know, contradictory k or sizes.
    """
    config = Document.read(folder / CONFIG)
    trainer = config.within("trainer")
    name = trainer.get("dict_class", str)
    if name not in CLASSES:
        raise TrainError(f"{config.path}: dict_class must be one of {', '.join(CLASSES)}, got {name!r}")
    kind, path = CLASSES[name], folder / WEIGHTS
    content = read(path)
    own = restored(
        config, content, (*_ONE_THRESHOLD, "jumprelu") if name == "JumpReluAutoEncoder" else (kind.architecture,)
    )
    tensors = torch_weights(path, content)
    checked = take(path, tensors, _shapes(tensors, kind, path))
    weights = {tensor: _from_file(key, checked[key]) for tensor, key in kind.names.items()}
    architecture, k, groups = own or (kind.architecture, _k(trainer, checked, kind), _groups(checked))
    if "threshold" in kind.buffers and kind.architecture != "topk":
        weights["threshold"] = checked["threshold"].expand(weights["W_dec"].shape[0]).clone()
    metadata = _metadata(config) if own is None else config.within(OURS).within("metadata").scalars()
    sae = built(
        path,
        architecture=architecture,
        k=k,
        groups=groups,
        apply_b_dec_to_input=kind.pre_bias,
        metadata=metadata,
        **weights,
    )
    return _rescaled(sae) if name == "AutoEncoder" else sae


def _rescaled(sae: InferenceSAE) -> InferenceSAE:
    norms_F = sae.W_dec.norm(dim=1)
    return sae if torch.allclose(norms_F, torch.ones_like(norms_F)) else fold_decoder_norms(sae, norm_weighted=False)


def _from_file(key: str, tensor: Tensor) -> Tensor:
    return tensor.T.contiguous() if key.endswith(".weight") else tensor


def _shapes(tensors: Mapping[str, Tensor], kind: DictClass, path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes that the decoder's own implies."""
    key = kind.names["W_dec"]
    if key not in tensors or tensors[key].ndim != 2:
        raise TrainError(f"{path} lacks the matrix {key}: wanted the tensors {', '.join(kind.names.values())}")
    d, f = tensors[key].shape if key.endswith(".weight") else tensors[key].shape[::-1]
    sizes: dict[str, tuple[int, ...]] = {"W_enc": (d, f), "W_dec": (f, d), "b_dec": (d,)}
    shapes = {key: sizes.get(tensor, (f,)) for tensor, key in kind.names.items()}
    shapes = {key: shape[::-1] if key.endswith(".weight") else shape for key, shape in shapes.items()}
    buffers: dict[str, tuple[int, ...]] = {"k": (), "threshold": ()}
    if "group_sizes" in kind.buffers and "group_sizes" in tensors:
        buffers["group_sizes"] = (tensors["group_sizes"].numel(),)
    unused = {"threshold"} if kind.architecture == "topk" else set()  # files from before January 2025 have none
    return shapes | {name: buffers.get(name, (1,)) for name in kind.buffers if name in tensors or name not in unused}


def _k(trainer: Document, tensors: Mapping[str, Tensor], kind: DictClass) -> int:
    if "k" not in kind.buffers:
        return 0
    k = trainer.get("k", int)
    if k != tensors["k"].item():
        raise TrainError(
            f"{trainer.path} says k = {k}, {WEIGHTS} says {tensors['k'].item()}: one of them is another SAE's"
        )
    return k


def _groups(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(int(size) for size in tensors.get("group_sizes", torch.empty(0)).tolist())


def _metadata(config: Document) -> dict[str, Scalar]:
    trainer, buffer = config.within("trainer").scalars(), config.within("buffer").scalars()
    fields = {
        "model_name": trainer.get("lm_name"),
        "layer": trainer.get("layer"),
        "context_size": buffer.get("ctx_len"),
        "training_architecture": trainer.get("trainer_class"),
    }
    submodule, layer = trainer.get("submodule_name"), trainer.get("layer")
    if isinstance(submodule, str) and submodule == f"resid_post_layer_{layer}":
        fields["hook_name"] = f"blocks.{layer}.hook_resid_post"
    return {name: value for name, value in fields.items() if value is not None}
