"""What a trained SAE is: weights in raw model units and the rule that makes latents of a row, however it was trained.

Evaluations use it for our own SAEs and for foreign ones; `train/exports` reads and writes it as files;
`train/folding.py` rewrites one without changing what it does.
Shapes: D d_model, F d_sae, B rows; a star is any leading axes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from train import group_biases
from train.errors import TrainError

TENSORS_OF: Final[dict[str, tuple[str, ...]]] = {
    "relu": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "topk": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "jumprelu": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "batchtopk": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "matryoshka": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
}
"""Architecture → the tensors that it has, and no others."""
GROUP_TENSORS: Final = ("group_bias", "group_of")
"""What any architecture may have besides, both or none."""
_SHAPES: Final = {"W_enc": "DF", "W_dec": "FD", "b_dec": "D", "group_bias": "GD"}  # everything else is [F]
_WITH_K: Final = ("topk", "batchtopk", "matryoshka")

Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True, eq=False)
class InferenceSAE:
    """x̂ = f W_dec + b_dec; f is made of the pre-activations (x − b_dec) W_enc + b_enc by the architecture's rule.

    | architecture | f |
    |---|---|
    | relu | ReLU(pre) |
    | topk | ReLU of the k largest of a row (Gao et al. 2024, arXiv 2406.04093, §2.3) |
    | jumprelu, batchtopk, matryoshka | ReLU(pre) where pre > threshold, strictly (arXiv 2407.14435, §3) |
    | gated | ReLU(x W_enc · exp(r_mag) + b_mag) where x W_enc + b_gate > 0, x less b_dec (arXiv 2404.16014, §3.2) |

    BatchTopK and Matryoshka SAEs use the threshold learned in training (Bussmann et al. 2024, arXiv 2412.06410, §3),
    so that a row's latents never depend on the rows beside it. With group biases b_g (`train/group_biases.py`) of G
    groups of latents, x̂ has Σ_g m_g b_g too, m_g the group's share of the row's activation.
    """

    TENSORS: ClassVar[tuple[str, ...]] = (
        *("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "b_gate", "b_mag", "r_mag"),
        *GROUP_TENSORS,
    )

    # Shapes are checked below rather than by annotations: weights come from strangers' files too.
    architecture: str
    W_enc: Tensor
    """[D, F]"""
    W_dec: Tensor
    """[F, D]"""
    b_dec: Tensor
    """[D]"""
    b_enc: Tensor | None = None
    """[F]; all but gated."""
    threshold: Tensor | None = None
    """[F]; jumprelu, batchtopk, matryoshka."""
    b_gate: Tensor | None = None
    """[F]; gated."""
    b_mag: Tensor | None = None
    """[F]; gated."""
    r_mag: Tensor | None = None
    """[F]; gated: logarithm of what the magnitude path scales W_enc by."""
    group_bias: Tensor | None = None
    """[G, D]; of SAEs that were trained with group biases."""
    group_of: Tensor | None = None
    """[F] int64, with `group_bias`: 1 to G, or 0 for none."""
    k: int = 0
    """topk: latents a row; batchtopk, matryoshka: the mean that it was trained for."""
    groups: tuple[int, ...] = ()
    """matryoshka: widths of the nested groups, which sum to F."""
    apply_b_dec_to_input: bool = True
    """Whether b_dec is subtracted from x before encoding."""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    """Where it belongs: model_name, hook_name, layer, context_size, prepend_bos, dataset_path, variant, …"""

    def __post_init__(self) -> None:
        """Check the tensors against the architecture.

        Raises:
            TrainError: an unknown architecture, a tensor missing or too many, a wrong shape, type or device, a value
                that is not finite, k or groups that do not fit, metadata that JSON would not give back.
        """
        if self.architecture not in TENSORS_OF:
            raise TrainError(f"architecture must be one of {', '.join(TENSORS_OF)}, got {self.architecture!r}")
        object.__setattr__(self, "metadata", dict(self.metadata))
        self._check_names()
        for name, tensor in self.tensors().items():
            self._check_tensor(name, tensor)
        self._check_numbers()
        check_metadata(self.metadata)

    def _check_names(self) -> None:
        wanted = TENSORS_OF[self.architecture]
        given = [name for name in self.TENSORS if getattr(self, name) is not None]
        if set(given) not in ({*wanted}, {*wanted, *GROUP_TENSORS}):
            raise TrainError(
                f"{self.architecture} has the tensors {', '.join(wanted)}, and either all or none of"
                f" {', '.join(GROUP_TENSORS)}, got {', '.join(given)}"
            )

    def _check_tensor(self, name: str, tensor: Tensor) -> None:
        groups = self.group_bias.shape[0] if self.group_bias is not None and self.group_bias.ndim else 0
        sizes = {"D": self.b_dec.numel(), "F": self.W_dec.shape[0] if self.W_dec.ndim else 0, "G": groups}
        axes = _SHAPES.get(name, "F")
        shape = tuple(sizes[axis] for axis in axes)
        if tuple(tensor.shape) != shape or 0 in shape:
            raise TrainError(f"{name} must be [{', '.join(axes)}] = {list(shape)}, got {list(tensor.shape)}")
        if name == "group_of":
            self._check_groups(tensor, groups)
            return
        matrix = name in ("W_enc", "W_dec")
        dtype = self.W_enc.dtype if matrix else torch.float32
        if tensor.dtype != dtype or dtype not in (torch.float32, torch.bfloat16, torch.float16):
            wanted = "float32, bfloat16 or float16, W_enc and W_dec the same" if matrix else "float32"
            raise TrainError(f"{name} must be {wanted}, got {tensor.dtype}")
        self._check_device(name, tensor)
        if not tensor.isfinite().all():
            raise TrainError(f"{name} has {int((~tensor.isfinite()).sum())} values that are not finite")

    def _check_groups(self, group_of_F: Tensor, groups: int) -> None:
        self._check_device("group_of", group_of_F)
        if group_of_F.dtype != torch.int64 or int(group_of_F.min()) < 0 or int(group_of_F.max()) > groups:
            raise TrainError(f"group_of must be int64 from 0 to {groups}, the rows of group_bias, got {group_of_F}")

    def _check_device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.W_enc.device:
            raise TrainError(
                f"all tensors must lie on one device: W_enc is on {self.device}, {name} on {tensor.device}"
            )

    def _check_numbers(self) -> None:
        if self.architecture in _WITH_K and not 1 <= self.k <= self.d_sae:
            raise TrainError(f"{self.architecture} needs k from 1 to d_sae = {self.d_sae}, got {self.k}")
        if self.architecture not in _WITH_K and self.k:
            raise TrainError(f"{self.architecture} has no k, got {self.k}")
        matryoshka = self.architecture == "matryoshka"
        if (sum(self.groups), min(self.groups, default=1) > 0) != (self.d_sae if matryoshka else 0, True):
            wanted = f"positive widths that sum to d_sae = {self.d_sae}" if matryoshka else "none"
            raise TrainError(f"groups of {self.architecture} must be {wanted}, got {self.groups}")

    @property
    def d_model(self) -> int:
        """D."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """F."""
        return self.W_dec.shape[0]

    @property
    def n_groups(self) -> int:
        """G; 0 without group biases."""
        return 0 if self.group_bias is None else len(self.group_bias)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Of W_enc and W_dec."""
        return self.W_enc.dtype

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that this architecture has, by name."""
        return {name: getattr(self, name) for name in self.TENSORS if getattr(self, name) is not None}

    def replaced(self, tensors: Mapping[str, Tensor]) -> "InferenceSAE":
        """The same SAE with some tensors changed."""
        fields: dict[str, Any] = dict(tensors)
        return replace(self, **fields)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "InferenceSAE":
        """The same SAE elsewhere, or with matrices of another type.

        Only W_enc and W_dec change their type: biases and thresholds are small and decide what is on, so they stay
        float32, and so do latents and reconstructions.
        """
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        for name in ("W_enc", "W_dec"):
            moved[name] = moved[name].to(dtype or self.dtype)
        return self.replaced(moved)

    def save(self, folder: Path) -> None:
        """Write it as SAELens does, each file whole or not at all; `load` gives back exactly this.

        Raises:
            TrainError: the folder cannot be written.
        """
        from train.exports import sae_lens  # which imports this class

        sae_lens.save(self, folder)

    @staticmethod
    def load(folder: Path) -> "InferenceSAE":
        """Read what `save` or SAELens wrote.

        Raises:
            TrainError: nothing there, damaged, or what this class cannot express.
        """
        from train.exports import sae_lens  # which imports this class

        return sae_lens.load(folder)

    def encode(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        """Latents of rows in raw model units, dense float32, ≥ 0."""
        x_BD = x.reshape(-1, self.d_model).float()
        if self.apply_b_dec_to_input:
            x_BD = x_BD - self.b_dec
        product_BF = (x_BD.to(self.dtype) @ self.W_enc).float()
        return self._activate(product_BF).reshape(*x.shape[:-1], self.d_sae)

    def _activate(self, product_BF: Tensor) -> Tensor:
        if self.b_gate is not None and self.b_mag is not None and self.r_mag is not None:
            magnitude_BF = torch.relu(product_BF * self.r_mag.exp() + self.b_mag)
            return magnitude_BF * (product_BF + self.b_gate > 0)
        pre_BF = product_BF if self.b_enc is None else product_BF + self.b_enc
        if self.threshold is not None:
            return torch.relu(pre_BF) * (pre_BF > self.threshold)
        if self.architecture == "topk":
            values_BK, indices_BK = pre_BF.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(pre_BF).scatter(-1, indices_BK, torch.relu(values_BK))
        return torch.relu(pre_BF)

    def decode(self, f: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch D"]:
        """Reconstructions of rows from latents, float32, in raw model units.

        A latent that is set below 0 counts as off in the groups' shares.
        """
        x_hat = (f.to(self.dtype) @ self.W_dec).float() + self.b_dec
        if self.group_bias is None or self.group_of is None:
            return x_hat
        amounts_BH = f.reshape(-1, self.d_sae).float().relu() @ group_biases.membership(
            self.group_of, len(self.group_bias)
        )
        return group_biases.added(x_hat.reshape(-1, self.d_model), amounts_BH, self.group_bias).reshape(x_hat.shape)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Reconstructions of rows."""
        return self.decode(self.encode(x))


def check_metadata(metadata: Mapping[str, Scalar]) -> None:
    """Refuse what a JSON file would not give back as it was.

    Raises:
        TrainError: a key that is not text, or a value that is not text, a number or a truth value.
    """
    for key, value in metadata.items():
        scalar = isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
        if not isinstance(key, str) or not scalar:
            raise TrainError(f"metadata must be text, finite numbers or truth values by name, got {key!r}: {value!r}")
