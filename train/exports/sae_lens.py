"""SAELens: `cfg.json` and `sae_weights.safetensors`, read there by `SAE.load_from_disk` (checked with 6.54.12).

It is also how our runs keep their SAEs. batchtopk and matryoshka are written as `jumprelu`, which is what SAELens makes
of them too after training; what the format has no field for lies in the metadata's object `silo`. An SAE with group
biases has an architecture that SAELens does not know, so that it is refused there and never read without them.
Shapes: D d_model, F d_sae, G groups.
"""

import re
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from torch import Tensor

from train.errors import TrainError
from train.exports.files import (
    OURS,
    Document,
    built,
    layer_of,
    ours,
    read,
    restored,
    safetensors_weights,
    take,
    write,
)
from train.folding import fold_decoder_norms
from train.inference import InferenceSAE, Scalar

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
VERSION: Final = "6.54.12"
"""The release whose format this is; without one SAELens reads a file as older than 6."""
_WRITTEN_AS: Final = {
    "relu": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
    "gated": "gated",
}
_WITH_GROUP_BIASES: Final = "_with_group_biases"
"""Added to the name of an architecture."""
_READ_AS: Final = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "batchtopk",  # these two: only checkpoints of SAELens' trainer
    "matryoshka_batchtopk": "matryoshka",
}


def save(sae: InferenceSAE, folder: Path) -> None:
    """Write an SAE, any architecture.

    Raises:
        TrainError: metadata that uses a name of ours, or the folder cannot be written.
    """
    tensors = {name: _to_file(tensor) for name, tensor in sae.tensors().items()}
    weights = safetensors.torch.save(tensors)
    config: dict[str, Any] = {
        "architecture": _written_as(sae.architecture, sae.n_groups),
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if sae.architecture == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    added = {name: value for name, value in _defaults(sae).items() if name not in sae.metadata}
    own = ours(sae, weights) | {"added": sorted(added)} | ({"group_biases": sae.n_groups} if sae.n_groups else {})
    config["metadata"] = added | dict(sae.metadata) | {OURS: own}
    write(folder, (WEIGHTS, weights), (CONFIG, config))


def _written_as(architecture: str, groups: int) -> str:
    return _WRITTEN_AS[architecture] + (_WITH_GROUP_BIASES if groups else "")


def _to_file(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().contiguous()


def _defaults(sae: InferenceSAE) -> dict[str, Any]:
    """What SAELens' evaluations look for."""
    layer = sae.metadata.get("layer")
    hook = {} if layer is None else {"hook_name": f"blocks.{layer}.hook_resid_post"}
    return hook | {
        "sae_lens_version": VERSION,
        "training_architecture": sae.architecture,
        "model_class_name": "HookedTransformer",
        # Our rows come from the model as it is; TransformerLens by default centres what its layers write.
        "model_from_pretrained_kwargs": {"center_writing_weights": False},
        "hook_head_index": None,
        "seqpos_slice": [None],
    }


def load(folder: Path) -> InferenceSAE:
    """Read an SAE that we or SAELens saved: any release, also checkpoints of its trainer.

    Raises:
        TrainError: missing, damaged, or something that InferenceSAE cannot express: another architecture, normalisation
            at run time, attention heads, fine-tuning scales.
    """
    config = _modern(Document.read(folder / CONFIG))
    metadata = config.within("metadata")
    path, content = folder / WEIGHTS, read(folder / WEIGHTS)
    own = restored(metadata, content, tuple(_WRITTEN_AS))
    tensors = safetensors_weights(path, content)
    if own is None:
        return _foreign(config, tensors, path)
    architecture, k, groups = own
    written_as = config.get("architecture", str)
    added, n_groups = metadata.within(OURS).get("added", list), metadata.within(OURS).get("group_biases", int, 0)
    if (wanted := _written_as(architecture, n_groups)) != written_as:
        raise TrainError(f"{config.path}: {architecture} is written as {wanted}, got {written_as!r}")
    fields = {name: value for name, value in metadata.scalars().items() if name not in added}
    weights = take(path, tensors, _shapes(config, n_groups))
    pre_bias = config.get("apply_b_dec_to_input", bool)
    return built(
        path,
        architecture=architecture,
        k=k,
        groups=groups,
        apply_b_dec_to_input=pre_bias,
        metadata=fields,
        **weights,
    )


def _foreign(config: Document, tensors: dict[str, Tensor], path: Path) -> InferenceSAE:
    architecture = _READ_AS.get(config.get("architecture", str))
    if architecture is None:
        raise TrainError(
            f"{config.path}: architecture must be one of {', '.join(_READ_AS)}, got {config.fields['architecture']!r}"
        )
    _check_run_time(config)
    if "scaling_factor" in tensors and bool((tensors["scaling_factor"] == 1).all()):
        del tensors["scaling_factor"]  # releases before 4 wrote ones
    weights = take(path, tensors, _shapes(config))
    d_sae = config.get("d_sae", int)
    if "topk_threshold" in weights:
        weights["threshold"] = weights.pop("topk_threshold").expand(d_sae).clone()
    sae = built(
        path,
        architecture=architecture,
        k=_k(config, architecture),
        groups=_groups(config) if architecture == "matryoshka" else (),
        apply_b_dec_to_input=config.get("apply_b_dec_to_input", bool, True),
        metadata=_metadata(config),
        **weights,
    )
    norm_weighted = config.get("rescale_acts_by_decoder_norm", bool, architecture in ("batchtopk", "matryoshka"))
    if config.get("normalize_activations", str, "none") == "expected_average_only_in":
        sae = _unscaled(sae, path.with_name(SCALER), norm_weighted)
    return fold_decoder_norms(sae, norm_weighted=True) if norm_weighted else sae


def _unscaled(sae: InferenceSAE, path: Path, norm_weighted: bool) -> InferenceSAE:
    """Fold the scale that a checkpoint of SAELens' trainer keeps beside its weights, as SAELens does at the end.

    Raises:
        TrainError: no scale there.
    """
    if not path.is_file():
        raise TrainError(
            f"{path.parent} was trained on scaled activations and its scale is not in its files: in SAELens call"
            " sae.fold_activation_norm_scaling_factor(…) and save it again"
        )
    scaling = Document.read(path).get("scaling_factor", float)
    if not 0 < scaling < float("inf"):
        raise TrainError(f"{path}: scaling_factor must be positive, got {scaling}")
    scaled = {"W_enc": sae.W_enc * scaling, "W_dec": sae.W_dec / scaling, "b_dec": sae.b_dec / scaling}
    if norm_weighted and sae.threshold is not None:
        scaled["threshold"] = sae.threshold / scaling
    return sae.replaced(scaled)


def _check_run_time(config: Document) -> None:
    """Refuse what SAELens computes from each row at run time, and head-wise inputs."""
    normalise = config.get("normalize_activations", str, "none")
    if normalise not in ("none", "expected_average_only_in"):
        raise TrainError(
            f"{config.path}: normalize_activations {normalise!r} cannot be expressed as weights: not loadable"
        )
    if (reshape := config.get("reshape_activations", str, "none")) != "none":
        raise TrainError(
            f"{config.path}: reshape_activations {reshape!r} reads attention heads, not the residual stream"
        )


def _shapes(config: Document, n_groups: int = 0) -> dict[str, tuple[int, ...]]:
    """Tensors that a file of this architecture holds."""
    d, f = config.get("d_in", int), config.get("d_sae", int)
    architecture = config.get("architecture", str).removesuffix(_WITH_GROUP_BIASES)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, f), "W_dec": (f, d), "b_dec": (d,)}
    if n_groups:
        shapes |= {"group_bias": (n_groups, d), "group_of": (f,)}
    if architecture == "gated":
        return shapes | {"b_gate": (f,), "b_mag": (f,), "r_mag": (f,)}
    if architecture == "jumprelu":
        shapes["threshold"] = (f,)
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        shapes["topk_threshold"] = ()
    return shapes | {"b_enc": (f,)}


def _k(config: Document, architecture: str) -> int:
    if architecture == "topk":
        return config.get("k", int)
    if architecture in ("batchtopk", "matryoshka"):
        mean = config.fields.get("k")  # a mean over the batch, so SAELens keeps a float
        if not isinstance(mean, int | float) or isinstance(mean, bool) or not 0 < mean < 2**31:
            raise TrainError(f"{config.path} needs 'k' as a positive number, got {mean!r}")
        return max(1, round(mean))
    return 0


def _groups(config: Document) -> tuple[int, ...]:
    widths, d_sae = config.get("matryoshka_widths", list), config.get("d_sae", int)
    if not all(type(width) is int for width in widths):
        raise TrainError(f"{config.path}: matryoshka_widths must be whole numbers, got {widths}")
    ends = [*widths, d_sae] if not widths or widths[-1] != d_sae else widths
    return tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True))


def _metadata(config: Document) -> dict[str, Scalar]:
    fields = config.within("metadata").scalars()
    fields.pop("sae_lens_version", None)
    return layer_of(fields.get("hook_name")) | fields


_RENAMED: Final = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
_MODEL_FIELDS: Final = ("model_name", "hook_name", "prepend_bos", "context_size", "dataset_path")


def _modern(config: Document) -> Document:
    """The configuration as release 6 writes it; older ones were flat.

    Raises:
        TrainError: an activation function that release 6 would silently read as ReLU.
    """
    version = config.fields.get("sae_lens_version") or config.within("metadata").fields.get("sae_lens_version")
    major = re.match(r"\d{1,9}", version) if isinstance(version, str) else None
    if major and int(major[0]) >= 6:
        return config
    flat = {_RENAMED.get(name, name): value for name, value in config.fields.items()}
    flat["metadata"] = {name: flat[name] for name in _MODEL_FIELDS if name in flat}
    flat.setdefault("architecture", "standard")
    flat.setdefault("reshape_activations", "hook_z" if "hook_z" in str(flat.get("hook_name")) else "none")
    if isinstance(scaled := flat.get("normalize_activations"), bool):
        flat["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    activation, settings = flat.get("activation_fn", "relu"), flat.get("activation_fn_kwargs")
    if activation == "topk" and isinstance(settings, dict):
        flat |= {"architecture": "topk", "k": settings.get("k")}
    elif activation not in ("relu", "topk"):
        raise TrainError(f"{config.path}: activation_fn must be relu or topk, got {activation!r}")
    return Document(config.path, flat)
