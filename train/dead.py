"""Dead latents: counted in rows on the device, treated by AuxK (in the loss) or by resampling (here).

Resampling follows Bricken et al. 2023, "Towards monosemanticity", appendix "Neuron resampling": a dead latent is
pointed at a row that is badly reconstructed.
"""

from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

from train.codes import Code
from train.optim import Optimiser
from train.sae import SAE
from train.world import ALONE, World

_ENCODER_SHARE: Final = 0.2  # of the living latents' mean encoder norm


class Silence:
    """How many rows each latent has been silent for, and the list of those silent for too long.

    The list is looked at once in a while, so that no step waits for the device.
    """

    def __init__(self, d_sae: int, dead_after: int, every: int, device: torch.device) -> None:
        """Every latent counts as just heard."""
        self.dead_after, self.every = dead_after, every
        self.rows_F = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.dead: Int[Tensor, " n"] = torch.zeros(0, dtype=torch.int64, device=device)

    @torch.no_grad()
    def observe(self, code: Code, rows: int, sae: SAE) -> None:
        """Count one batch of (globally) `rows` rows."""
        self.rows_F += rows
        if code.is_sparse:
            values_n, features_n, _ = code.entries
            # Entries that are off write to a slot of their own: a mask would have to wait for its length.
            padded = torch.cat([self.rows_F, self.rows_F.new_zeros(1)])
            features_n = torch.where(values_n > 0, features_n.long(), len(self.rows_F))
            self.rows_F.copy_(padded.index_fill_(0, features_n, 0)[:-1])
        else:
            self.rows_F *= ~(code.dense > 0).any(0)

    @torch.no_grad()
    def look(self, step: int, sae: SAE) -> bool:
        """Renew the list where it is due, before step `step`; says whether it was."""
        if step % self.every:
            return False
        self.rows_F = sae.world.minimum(self.rows_F)
        self.dead = (self.rows_F >= self.dead_after).nonzero()[:, 0]
        return True

    @torch.no_grad()
    def share(self, world: World = ALONE) -> Tensor:
        """Share of the latents that are dead."""
        return world.total((world.minimum(self.rows_F) >= self.dead_after).double().mean()) / world.shards

    def state(self, world: World = ALONE) -> dict[str, Tensor]:
        """The counters and the list of the whole dictionary, over all processes."""
        dead_F = world.whole(torch.zeros_like(self.rows_F, dtype=torch.uint8).index_fill_(0, self.dead, 1), 0)
        return {"rows": world.whole(world.minimum(self.rows_F), 0), "dead": dead_F.nonzero()[:, 0]}

    def load_state(self, state: Mapping[str, Tensor], world: World = ALONE) -> None:
        """Go on from a saved state."""
        device = self.rows_F.device
        dead_F = torch.zeros_like(state["rows"], dtype=torch.uint8).index_fill_(0, state["dead"], 1)
        self.rows_F.copy_(world.own(state["rows"], 0))
        self.dead = world.own(dead_F, 0).nonzero()[:, 0].to(device)


@torch.no_grad()
def resample(
    sae: SAE, silence: Silence, optimiser: Optimiser, x_BD: Tensor, generator: torch.Generator, *, parts: int = 1
) -> int:
    """Point dead latents at rows drawn with probability ∝ ‖x − x̂‖⁴, and forget their moments; returns how many.

    Source: the loss squared, normalised encoder rows at 0.2 of the living's mean norm, bias 0. `parts` are the feed's.
    """
    world, dead = sae.world, silence.dead
    before, every = world.place(len(dead))
    if not every:
        return 0
    error_BD = x_BD - sae.decode(sae.encode(x_BD))
    chance_B = world.gather_rows(error_BD.square().sum(1, keepdim=True).square().double(), parts)[:, 0].cpu()
    x_BD = world.gather_rows(x_BD, parts)
    if not float(chance_B.sum()) > 0:
        return 0
    drawn = torch.multinomial(chance_B, every, replacement=every > len(x_BD), generator=generator)
    drawn = drawn[before : before + len(dead)]
    direction_nD = x_BD[drawn.to(x_BD.device)] - sae.b_dec
    direction_nD = direction_nD / direction_nD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    alive_F = torch.ones(len(silence.rows_F), dtype=torch.bool, device=dead.device).index_fill_(0, dead, False)
    if every == sae.config.d_sae:
        alive_F = torch.ones_like(alive_F)
    norm, dec_norm = (_mean_norm(one_FD[alive_F], world) for one_FD in (sae.W_enc.T, sae.W_dec))
    sae.W_dec[dead] = direction_nD if sae.unit_norm else direction_nD * dec_norm
    sae.W_enc.T[dead] = direction_nD * norm * _ENCODER_SHARE
    sae.revive(dead)
    optimiser.forget(dead)
    silence.rows_F[dead] = 0
    silence.dead = dead[:0]
    return every


def _mean_norm(w_nD: Tensor, world: World) -> Tensor:
    """Mean norm of the rows of all shards."""
    return world.total(w_nD.norm(dim=1).sum()) / world.total(w_nD.new_full((), len(w_nD)))
