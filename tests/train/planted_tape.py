"""A CUDA graph without a GPU: the operations of a step, with their arguments, recorded and run again.

As on a GPU: Python numbers stay what they were when it was recorded, every result has its own memory and keeps it,
recording leaves what the step would change as it was, and what waits for the device cannot be recorded.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.graph import Recorder

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2"}


def waits(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation's result has a shape, or is a number, that only the data tells."""
    name = func.overloadpacket.__name__
    masks = name in ("index", "index_put", "index_put_") and any(
        one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
    )
    return name in WAITING or masks


def tensors(value: Any) -> list[Tensor]:
    """Those in nested lists."""
    return [one for one in tree_leaves(value) if isinstance(one, Tensor)]


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The arguments that an operation changes."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors(args[position] if position < len(args) else kwargs.get(argument.name))


class Tape(Recorder):
    """Records on any device; `done` lists what was asked of it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def warm_up(self, step: Callable[[], object]) -> None:
        self.done.append("warm up")
        step()

    def record(self, step: Callable[[], object]) -> Callable[[], None]:
        self.done.append("record")
        listening = _Listening()
        try:
            with listening:
                step()
        finally:
            for tensor, before in reversed(listening.before):
                tensor.detach().copy_(before)

        def replay() -> None:
            self.done.append("replay")
            with torch.no_grad():
                for func, args, kwargs, kept in listening.calls:
                    _keep(kept, func(*args, **kwargs))

        return replay


class _Listening(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if waits(func, args):
            raise RuntimeError(f"{func} is not permitted while recording")
        self.before += [(one, one.detach().clone()) for one in written(func, args, kwargs)]
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result


def _keep(kept: Any, fresh: Any) -> None:
    """Put results where they were the first time; views and changed arguments are there already."""
    for old, new in zip(tensors(kept), tensors(fresh), strict=True):
        if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
            old.copy_(new)
