"""Random trained SAEs of every architecture, with latents that are on and off, and rows to feed them."""

from typing import Any, Final

import torch
from torch import Tensor

from train.inference import TENSORS_OF, InferenceSAE

ARCHITECTURES: Final = tuple(TENSORS_OF)
D, F, K = 12, 40, 6
METADATA: Final = {
    "model_name": "google/gemma-2-2b",
    "hook_name": "blocks.12.hook_resid_post",
    "layer": 12,
    "context_size": 128,
    "prepend_bos": True,
    "dataset_path": "monology/pile-uncopyrighted",
    "variant": "planted",
    "share": 0.25,
}


def rows(seed: int = 0, n: int = 64) -> Tensor:
    """Rows of roughly unit entries around a mean of 2."""
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1000 + seed)) + 2.0


def planted_sae(
    architecture: str,
    *,
    seed: int = 0,
    unit_norm: bool = True,
    pre_bias: bool = True,
    one_threshold: bool = False,
    n_groups: int = 0,
) -> InferenceSAE:
    """An SAE whose every weight matters; with `n_groups` it has as many group biases, and latents of no group."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    w_dec_FD = normal(F, D)
    w_dec_FD /= w_dec_FD.norm(dim=1, keepdim=True)
    if not unit_norm:
        w_dec_FD *= torch.rand(F, 1, generator=generator) + 0.5
    fields: dict[str, Any] = {
        "W_enc": normal(D, F) / D**0.5,
        "W_dec": w_dec_FD,
        "b_enc": 0.3 * normal(F),
        "b_dec": 2.0 + 0.2 * normal(D) if pre_bias else normal(D),
        "threshold": torch.full((F,), 0.4) if one_threshold else 0.2 + 0.5 * normal(F).abs(),
        "b_gate": 0.3 * normal(F),
        "b_mag": 0.3 * normal(F),
        "r_mag": 0.3 * normal(F),
    }
    if architecture in ("topk", "batchtopk", "matryoshka"):
        fields["k"] = K
    if architecture == "matryoshka":
        fields["groups"] = (5, 10, 25)
    optional = {name for name in InferenceSAE.TENSORS if name not in TENSORS_OF[architecture]}
    if n_groups:
        optional -= {"group_bias", "group_of"}
        fields |= {"group_bias": normal(n_groups, D), "group_of": torch.arange(F) % (n_groups + 1)}
    kept = {name: value for name, value in fields.items() if name not in optional}
    return InferenceSAE(architecture=architecture, apply_b_dec_to_input=pre_bias, metadata=METADATA, **kept)


def same_function(a: InferenceSAE, b: InferenceSAE, x_BD: Tensor, tolerance: float = 1e-5) -> None:
    """Two SAEs give the same latents and reconstructions, with latents on and off."""
    f_BF = a.encode(x_BD)
    assert 0.02 < (f_BF > 0).float().mean() < 0.98, "the rows must switch latents on and off"
    torch.testing.assert_close(b.encode(x_BD), f_BF, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(b.decode(f_BF), a.decode(f_BF), rtol=tolerance, atol=tolerance)
