"""One optimiser step: gradients reduced over the processes, then Adam with what unit-norm decoders need around it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from train.config import TrainingConfig
from train.kernels.adam import Adam
from train.sae import SAE
from train.world import latent_axis


class Optimiser:
    """Adam over an SAE's parameters."""

    def __init__(self, sae: SAE, config: TrainingConfig) -> None:
        """Moments start at 0."""
        self.sae, self.clip = sae, config.clip
        self.adam = Adam(
            dict(sae.named_parameters()),
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            unit_rows="W_dec" if sae.unit_norm else None,
        )

    def step(self, lr: float) -> Tensor:
        """One step: `begin` and `descend`."""
        self.begin(lr)
        return self.descend()

    def begin(self, lr: float) -> None:
        """Count a step and set its learning rate."""
        self.adam.begin(lr)

    def descend(self) -> Tensor:
        """Use the gradients and drop them; returns their norm before clipping, without waiting for it."""
        world = self.sae.world
        world.reduce_gradients({n: grad for n, one in self.adam.parameters.items() if (grad := one.grad) is not None})
        return self.adam.descend(self.clip or None, world.norm if world.shards > 1 else None)

    @torch.no_grad()
    def forget(self, latents: Tensor) -> None:
        """Set the moments of some latents to 0, after they were re-initialised."""
        for name, moments in self.adam.state.items():
            for moment in moments.values():
                if (axis := latent_axis(name, moment)) is not None:
                    moment.index_fill_(axis, latents, 0)

    def state(self) -> dict[str, Tensor]:
        """Moments by parameter name, and the number of steps."""
        return self.adam.state_tensors()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.adam.load_state_tensors(state)
