"""SAEs with group biases, and two domains that lie apart as wholes: what such biases should find."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from evals.planted import Domains
from evals.planted.source import Sample
from tests.train.planted_training import F, untrained
from tests.train.planted_windows import member, normalisation_of
from train.member import Member
from train.penalties.ortho_groups import OrthoGroupsConfig
from train.sae import SAE


@dataclass(frozen=True, kw_only=True)
class Offsets(Domains):
    """Every row of a domain is moved by the domain's own vector of norm 1; no feature is shared."""

    d_model: int = 32
    forget: int = 12
    retain: int = 12
    shared: int = 0
    p_home: float = 0.25

    @property
    def offsets(self) -> Tensor:
        """[2, D], of the forget and of the retain domain."""
        return normalize(torch.randn(2, self.d_model, generator=torch.Generator().manual_seed(77)), dim=1)

    def sequences(self, n: int, context: int, generator: torch.Generator) -> Sample:
        """As without, moved."""
        sample = super().sequences(n, context, generator)
        assert sample.domain is not None
        return sample._replace(x=sample.x + self.offsets[sample.domain][:, None])


SOURCE = Offsets()
NORMALISATION = normalisation_of(SOURCE)


def biased(
    architecture: str = "batchtopk", *, steps: int = 40, term: dict[str, Any] | None = None, **own: Any
) -> Member:
    """A run of `ortho_groups` with its biases (or, as `term` says, without) on such rows."""
    settings: dict[str, Any] = {"biases": True, "refresh": 5, "coeff": 0.03, **(term or {})}
    groups = OrthoGroupsConfig(**settings).group_biases
    known = {"d_sae": 48, "lr": 3e-3, "warmup": 4, "steps": steps, "group_biases": groups}
    return member(architecture, {"ortho_groups": settings}, NORMALISATION, **{**known, **own})


def grouped(architecture: str, **settings: Any) -> SAE:
    """An SAE with two groups, biases that matter, and latents of no group."""
    sae = untrained(architecture, group_biases=2, **settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in sae.parameters():
            one += 0.2 * torch.randn(one.shape, generator=generator)
    sae.get_buffer("group_of").copy_(torch.randint(0, 3, (F,), generator=generator))
    return sae
