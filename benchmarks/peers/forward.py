"""What the harvest is measured against on its own ground: bare forward passes, the usual way, and matrix products.

Shapes: B sequences a batch, T positions, D d_model.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import interleaved
from harvest.model import CONFIGURATIONS, ResidualModel

HOOK = 12
"""Layer 12 of 26: what `make harvest LAYER=12` means."""


def forward_seconds(model: ResidualModel, batches: list[Tensor], layers: tuple[int, ...]) -> float:
    """Of the forward passes alone."""
    begin = time.perf_counter()
    for tokens_BT in batches:
        model.residuals(tokens_BT, layers=layers)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def flops_per_token(model: ResidualModel, layer: int, context: int) -> float:
    """Of the matrix products in the blocks: weights, and attention to the positions that are not masked."""
    config = model.model.config
    weights = sum(w.numel() for block in model.blocks[: layer + 1] for w in block.parameters() if w.ndim == 2)
    attention = 2 * config.num_attention_heads * config.head_dim * (context + 1) / 2
    return float(2 * (weights + (layer + 1) * attention))


def matmul_rate(device: str) -> float:
    """FLOP/s of a square bfloat16 product, the median of 9."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).bfloat16()

    def product() -> None:
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * n**3 / interleaved({"matmul": product}, rounds=9, warm=3)["matmul"].median


def narrow_configuration(folder: Path) -> str:
    """A folder with the configuration of a Gemma-2 of 26 layers, d 512 and the real vocabulary."""
    fields = json.loads((CONFIGURATIONS / "gemma-2-2b.json").read_text(encoding="utf-8"))
    fields |= {"hidden_size": 512, "intermediate_size": 2048, "head_dim": 64, "query_pre_attn_scalar": 64}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return str(folder)


def ways_to_hook(model: ResidualModel, tokens_BT: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The usual way to the output of block `HOOK`, and ours; both were seen to give the same vectors."""

    def usual() -> Tensor:
        with torch.no_grad():
            states = model.model(tokens_BT, output_hidden_states=True).hidden_states
        return _ready(states[HOOK + 1])

    def ours() -> Tensor:
        return _ready(model.residuals(tokens_BT, layers=(HOOK,))[HOOK])

    if not torch.equal(usual(), ours()):
        raise SystemExit(f"the two ways to layer {HOOK} give different vectors")
    return {"usual": usual, "ours": ours}


def _ready(x_BTD: Tensor) -> Tensor:
    if x_BTD.is_cuda:
        torch.cuda.synchronize()
    return x_BTD
