"""What the penalties cost at the sizes of real dictionaries, counted without computing: on meta tensors.

Operations are those of matrix products and of gathered entries (2 D each), against 10 B F D of a dense training step;
memory is the peak of live tensors, and what is kept from step to step.
"""

import weakref
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as fx_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.train.planted_training import as_rows
from train import kernels
from train.architectures import ARCHITECTURES
from train.codes import Code, Entries
from train.feed.batch import Batch
from train.penalties import PENALTIES, Penalty
from train.penalties.ortho_groups import OrthoGroups
from train.rows import Rows
from train.sae import SAE, Forward

D, B, K = 2304, 2048, 64
GB: Final = 10**9
# Percent of the dense step: the table of the specification plus 5 points; of the search, its share a step.
MOST: Final = {
    ("ortho_active", 18432): 6.7,
    ("ortho_active", 65536): 5.5,
    ("ortho_importance", 18432): 6.9,
    ("ortho_importance", 65536): 9.2,
    ("ortho_pairs", 18432): 5.3,
    ("ortho_pairs", 65536): 6.0,
    ("ortsae", 18432): 21.0,
    ("ortsae", 65536): 21.0,
    ("ortho_adaptive", 18432): 9.5,
    ("ortho_adaptive", 65536): 9.5,
    ("ortho_groups", 18432): 9.5,
    ("ortho_groups", 65536): 9.5,
    ("temporal", 18432): 6.2,
    ("temporal", 65536): 5.7,
}
PAIRS: Final = ("ortho_active", "ortho_importance", "ortho_pairs", "ortsae")
WINDOW: Final = 8


class Peak(TorchDispatchMode):
    """Bytes of all tensors that operations made and that are still alive, and the most that there were."""

    def __init__(self, known: Tensor) -> None:
        """Everything counts but `known`, which was there before."""
        super().__init__()
        self.seen: set[int] = {known.untyped_storage()._cdata}
        self.live = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += nbytes
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self._forget, key, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        self.seen.discard(key)
        self.live -= nbytes


class Gathered:
    """Operations of the kernels that gather entries, which no counter of products sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count from now on."""
        self.total = 0
        for name, features in (("gather_dot", 0), ("gather_sum", 1)):
            monkeypatch.setattr(kernels, name, self._counting(getattr(kernels, name), features))

    def _counting(self, kernel: Any, features: int) -> Any:
        def counted(*arguments: Tensor) -> Tensor:
            self.total += 2 * len(arguments[features]) * D
            out: Tensor = kernel(*arguments)
            return out

        return counted


def large(d_sae: int) -> tuple[SAE, Forward]:
    """An SAE and a pass of B rows with K entries each, on the meta device."""
    kind = ARCHITECTURES["batchtopk"]
    sae = kind.sae(kind.config(d_model=2, d_sae=2, k=1))
    with torch.device("meta"):
        sae.W_dec = nn.Parameter(torch.empty(d_sae, D))
        entries = Entries(
            torch.empty(B * K, requires_grad=True),
            torch.empty(B * K, dtype=torch.int64),
            torch.empty(B + 1, dtype=torch.int64),
        )
        x_BD = torch.empty(B, D)
    return sae, Forward(x_BD, Code(d_sae, entries=entries), x_BD, {})


def made(name: str, sae: SAE) -> Penalty:
    """With its defaults; all latents in one of two groups, where there are groups."""
    with fx_config.patch(meta_nonzero_assume_all_nonzero=True):  # groups are looked up by `nonzero`, and set below
        one = PENALTIES[name].penalty(PENALTIES[name].config(), sae, torch.Generator().manual_seed(0))
    if isinstance(one, OrthoGroups):
        one.groups.first, one.groups.second = torch.arange(len(sae.W_dec), device="meta").chunk(2)
    return one


def searching(name: str, d_sae: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Operations a step of what is done between two uses."""
    sae, forward = large(d_sae)
    one = made(name, sae)
    with Peak(sae.W_dec) as peak, FlopCounterMode(display=False) as products, monkeypatch.context() as patch:
        gathered = Gathered(patch)
        one.update(sae, forward, as_rows(forward.x_BD), 0)
    assert peak.most < GB
    return (products.get_total_flops() + gathered.total) / getattr(one.config, "refresh", 1)


@pytest.mark.parametrize(("name", "d_sae"), MOST)
def test_products_and_memory_stay_within_the_table(name: str, d_sae: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, forward = large(d_sae)
    one, rows = made(name, sae), as_windows(forward.x_BD)
    with Peak(sae.W_dec) as peak, FlopCounterMode(display=False) as products, monkeypatch.context() as patch:
        gathered = Gathered(patch)
        one.value(sae, forward, rows).backward()
    use = products.get_total_flops() + gathered.total
    assert use > 0
    between = searching(name, d_sae, monkeypatch) if name in PAIRS else 0
    assert 100 * (use / one.config.every + between) / (10 * B * d_sae * D) <= MOST[name, d_sae]
    gradient = 0 if name == "temporal" else 4 * d_sae * D  # of the decoder, the least; or of the entries
    assert gradient <= peak.most < GB
    assert sum(tensor.nbytes for tensor in one.state().values()) < GB // 4


def as_windows(x_BD: Tensor) -> Rows:
    """Rows in windows of documents of their own."""
    n = B // WINDOW
    number_n = torch.arange(n, dtype=torch.int32)
    number_nW = number_n[:, None].expand(n, WINDOW)
    none = torch.zeros(0, dtype=torch.uint8)
    return Rows(
        x_BD, WINDOW, Batch(x_BD.view(n, WINDOW, D).bfloat16(), number_n.long(), number_n, number_nW, number_nW, none)
    )
