"""Adam with what an SAE's optimiser step has around it, in as few passes over memory as that takes.

One step: remove from W_dec's gradient what points along its unit rows (it would only change norms that are held at 1),
clip the global norm of all gradients, Adam (Kingma & Ba 2015, algorithm 1), bring W_dec's rows back to norm 1.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam as fused_adam

from train.kernels.sparse import compiled_for
from train.kernels.threads import share

NormOf = Callable[[Mapping[str, Tensor]], Tensor]
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
_CHUNK_BYTES: Final = 2**19


class Adam:
    """Adam over named parameters; compiled kernels on the CPU, torch's fused Adam elsewhere.

    A weight matrix may be the transpose of a contiguous one (W_enc lies in memory latent by latent).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        unit_rows: str | None = None,
    ) -> None:
        """Moments start at 0.

        Args:
            parameters: by name; all on one device.
            betas: decay of the two moments a step.
            eps: added to the root of the second moment.
            unit_rows: name of the parameter whose rows have norm 1 and keep it.
        """
        self.parameters, self.betas, self.eps, self.unit_rows = dict(parameters), betas, eps, unit_rows
        self.steps, self.lr = 0, 0.0
        first = next(iter(self.parameters.values()))
        # On the device, so that nothing is copied there and a recorded step finds the new numbers. There the fused
        # kernel reads lr as float32; on a CPU it takes a double.
        self._lr = torch.zeros((), dtype=torch.float64 if first.is_cpu else torch.float32, device=first.device)
        self._before = torch.zeros((), device=first.device)
        self.state = {
            name: {moment: torch.zeros_like(one, requires_grad=False) for moment in _MOMENTS}
            for name, one in self.parameters.items()
        }

    def step(self, lr: float, clip: float | None = None, norm_of: NormOf | None = None) -> Tensor:
        """One step: `begin` and `descend`, with their arguments and the latter's result."""
        self.begin(lr)
        return self.descend(clip, norm_of)

    @torch.no_grad()
    def begin(self, lr: float) -> None:
        """Count a step and set its learning rate: all but the gradients that differs from step to step."""
        self._before.fill_(float(self.steps))
        self._lr.fill_(lr)
        self.steps, self.lr = self.steps + 1, lr

    @torch.no_grad()
    def descend(self, clip: float | None = None, norm_of: NormOf | None = None) -> Tensor:
        """Use the gradients and drop them; parameters without one stay as they are.

        Off the CPU's compiled kernels this is the same work on the same memory every time, so it can be recorded.

        Args:
            clip: largest global norm.
            norm_of: the global norm from each gradient's sum of squares, where other processes have more parameters.

        Returns:
            The global norm of the gradients, without the part along unit rows and before clipping to `clip`.
        """
        used = [name for name, one in self.parameters.items() if one.grad is not None]
        compiled = all(compiled_for(self.parameters[name]) for name in used)
        norm = self._compiled_step(clip, norm_of) if compiled else self._plain_step(used, clip, norm_of)
        for one in self.parameters.values():
            one.grad = None
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments as `<name>.exp_avg` and `<name>.exp_avg_sq`, and the number of `steps`; not copies."""
        found = {f"{name}.{moment}": one for name, state in self.state.items() for moment, one in state.items()}
        return {**found, "steps": torch.tensor(self.steps)}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave."""
        self.steps = int(tensors["steps"])
        for name, state in self.state.items():
            for moment, own in state.items():
                own.copy_(tensors[f"{name}.{moment}"])

    def _compiled_step(self, clip: float | None, norm_of: NormOf | None) -> Tensor:
        from train.kernels import compiled

        grads = {name: _rows(grad, one) for name, one in self.parameters.items() if (grad := one.grad) is not None}
        along_F, totals = np.zeros(1, np.float32), dict[str, float]()
        for name, grad_FD in grads.items():
            squares_F = np.empty(len(grad_FD), np.float32)
            if name == self.unit_rows:
                along_F, w_FD = np.empty(len(grad_FD), np.float32), _rows(self.parameters[name], self.parameters[name])
                _over_rows(compiled.row_squares, grad_FD, w_FD, along_F, squares_F)
            else:
                _over_rows(compiled.squares, grad_FD, squares_F)
            totals[name] = float(squares_F.sum(dtype=np.float64))
        if norm_of:
            norm = float(norm_of({name: torch.tensor(one, dtype=torch.float64) for name, one in totals.items()}))
        else:
            norm = sum(totals.values()) ** 0.5
        scales = self._scales(1.0 if clip is None else min(1.0, clip / (norm + 1e-6)))
        for name, grad_FD in grads.items():
            parameter = self.parameters[name]
            moments = [_rows(self.state[name][moment], parameter) for moment in _MOMENTS]
            unit = name == self.unit_rows
            _over_rows(compiled.adam_rows, _rows(parameter, parameter), grad_FD, *moments, along_F, unit, scales)
        return torch.tensor(norm, dtype=torch.float32)

    def _scales(self, factor: float) -> tuple[np.float32, ...]:
        beta1, beta2 = self.betas
        size, correction = self.lr / (1 - beta1**self.steps), (1 - beta2**self.steps) ** 0.5
        return tuple(np.float32(one) for one in (factor, 1 - beta1, beta2, 1 - beta2, size, correction, self.eps))

    def _plain_step(self, used: list[str], clip: float | None, norm_of: NormOf | None) -> Tensor:
        w_FD = self.parameters[self.unit_rows] if self.unit_rows in used else None
        if w_FD is not None and w_FD.grad is not None:
            w_FD.grad.addcmul_((w_FD.grad * w_FD).sum(1, keepdim=True), w_FD, value=-1)
        parameters = [self.parameters[name] for name in used]
        grads = {name: grad for name in used if (grad := self.parameters[name].grad) is not None}
        if norm_of:
            norm = norm_of({name: grad.square().sum() for name, grad in grads.items()})
        else:
            norm = torch.nn.utils.get_total_norm(grads.values())
        torch.nn.utils.clip_grads_with_norm_(parameters, torch.inf if clip is None else clip, norm)
        means, squares = (
            [_lying(self.state[name][moment], self.parameters[name]) for name in used] for moment in _MOMENTS
        )
        fused_adam(
            params=[_lying(one.detach(), one) for one in parameters],
            grads=[_lying(one.grad, one) for one in parameters if one.grad is not None],
            exp_avgs=means,
            exp_avg_sqs=squares,
            max_exp_avg_sqs=[],
            state_steps=[self._before.clone() for _ in used],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self._lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )
        if w_FD is not None:
            norms_F1 = w_FD.norm(dim=1, keepdim=True)
            w_FD.div_(norms_F1.where(norms_F1 > 0, 1))
        return norm


def _lying(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor as the memory of `like` has its rows, transposed or not; torch's fused Adam is slow on transposes."""
    transposed = like.ndim == 2 and not like.is_contiguous()
    return tensor.T.contiguous() if transposed else tensor.contiguous()


def _rows(tensor: Tensor, like: Tensor) -> np.ndarray:
    """The same as an array of rows; a vector is one row."""
    lying = _lying(tensor.detach(), like)
    return (lying if lying.ndim == 2 else lying.reshape(1, -1)).numpy()


def _over_rows(kernel: Callable[..., None], *arguments: Any) -> None:
    """Call a kernel on ranges of rows of its first argument, from all threads."""
    rows_FD = arguments[0]
    chunk = max(1, _CHUNK_BYTES // (4 * rows_FD.shape[1]))
    share(lambda start, stop: kernel(*arguments, start, stop), len(rows_FD), chunk)
