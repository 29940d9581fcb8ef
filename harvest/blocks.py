"""Where a transformer keeps its decoder blocks, and how their outputs are read.

Works on any causal language model of transformers whose blocks are one `ModuleList`: Gemma, Llama, Qwen, GPT-2,
GPT-NeoX and most others.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
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


class _StopForward(Exception):
    """No error: ends a forward pass that has given what was wanted."""


@contextmanager
def collect_outputs(blocks: nn.ModuleList, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Gather the outputs of the wanted blocks while the body runs, and end the body after the last of them."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output
            if layer == wanted[-1]:
                raise _StopForward

        return hook

    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in wanted]
    try:
        yield found
    except _StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
