"""Where a transformer keeps its decoder blocks, and how their outputs are read.

Works on any causal language model of transformers whose blocks are one `ModuleList`: Gemma, Llama, Qwen, GPT-2,
GPT-NeoX and most others.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from harvest.errors import HarvestError


def text_config(config: PretrainedConfig) -> Any:
    """The language model's part of a configuration that may also describe a vision tower."""
    return config.get_text_config(decoder=True)


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder blocks: the outermost `ModuleList` of the decoder with `num_hidden_layers` members.

    Raises:
        HarvestError: none, or more than one at the same depth; names the lists there are.
    """
    n_layers = text_config(model.config).num_hidden_layers
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    lists = {name: part for name, part in decoder.named_modules() if isinstance(part, nn.ModuleList)}
    depths = {name: name.count(".") for name, part in lists.items() if len(part) == n_layers}
    outermost = [name for name, depth in depths.items() if depth == min(depths.values())]
    if len(outermost) != 1:
        there = ", ".join(f"{name} ({len(part)})" for name, part in list(lists.items())[:8]) or "none"
        raise HarvestError(
            f"cannot tell the decoder blocks of {type(model).__name__}: wanted one torch.nn.ModuleList of "
            f"num_hidden_layers = {n_layers} blocks, found {there}"
        )
    return lists[outermost[0]]


def learned_positions(model: PreTrainedModel, limit: int) -> bool:
    """Whether positions are rows of a table: an embedding beside that of the tokens, about as long as the context.

    (OPT's table has two rows more than positions.)
    """
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    words = model.get_input_embeddings()
    return any(limit <= table.num_embeddings <= limit + 2 for table in tables if table is not words)


class _StopForward(Exception):
    """No error: ends a forward pass that has given what was wanted."""


class BlockOutputs:
    """Reads what blocks give during forward passes, for any number of threads at once.

    A block carries one hook however many passes are under way, and none when there is none; the hook serves each thread
    with what that thread asked for.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        """Touch nothing yet."""
        self._blocks = blocks
        self._lock = threading.Lock()
        self._hooks: dict[int, tuple[RemovableHandle, int]] = {}
        self._asked = threading.local()

    @contextmanager
    def collect(self, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Gather the outputs of the wanted blocks while this thread runs the body; ends it after the last of them."""
        found: dict[int, Tensor] = {}
        self._hold(wanted)
        self._asked.wanted, self._asked.found = tuple(wanted), found
        try:
            yield found
        except _StopForward:
            pass
        finally:
            self._asked.wanted, self._asked.found = (), {}
            self._release(wanted)

    def _hold(self, wanted: Sequence[int]) -> None:
        with self._lock:  # torch numbers its hooks without one
            for layer in wanted:
                if layer not in self._hooks:
                    self._hooks[layer] = self._blocks[layer].register_forward_hook(self._hook(layer)), 0
                handle, passes = self._hooks[layer]
                self._hooks[layer] = handle, passes + 1

    def _release(self, wanted: Sequence[int]) -> None:
        with self._lock:
            for layer in wanted:
                handle, passes = self._hooks.pop(layer)
                if passes > 1:
                    self._hooks[layer] = handle, passes - 1
                else:
                    handle.remove()

    def _hook(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
            wanted: tuple[int, ...] = getattr(self._asked, "wanted", ())
            if layer not in wanted:
                return
            self._asked.found[layer] = output[0] if isinstance(output, tuple) else output
            if layer == wanted[-1]:
                raise _StopForward

        return hook
