"""What the pair penalties cost at the sizes of real dictionaries, counted without computing: on meta tensors.

Operations are those of matrix products, against 10 B F D of a dense training step; memory is the peak of live tensors.
"""

import weakref
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.train.planted_training import as_rows
from train.architectures import ARCHITECTURES
from train.codes import Code, Entries
from train.penalties import PENALTIES
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
}


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


def large(d_sae: int) -> tuple[SAE, Forward]:
    """An SAE and a pass of B rows with K entries each, on the meta device."""
    kind = ARCHITECTURES["batchtopk"]
    sae = kind.sae(kind.config(d_model=2, d_sae=2, k=1))
    with torch.device("meta"):
        sae.W_dec = nn.Parameter(torch.empty(d_sae, D))
        entries = Entries(
            torch.empty(B * K), torch.empty(B * K, dtype=torch.int64), torch.empty(B + 1, dtype=torch.int64)
        )
        x_BD = torch.empty(B, D)
    return sae, Forward(x_BD, Code(d_sae, entries=entries), x_BD, {})


@pytest.mark.parametrize("d_sae", [18432, 65536])
@pytest.mark.parametrize("name", ["ortho_active", "ortho_importance", "ortho_pairs", "ortsae"])
def test_products_and_memory_stay_within_the_table(name: str, d_sae: int) -> None:
    sae, forward = large(d_sae)
    config = PENALTIES[name].config()
    one = PENALTIES[name].penalty(config, sae, torch.Generator().manual_seed(0))
    rows = as_rows(forward.x_BD)
    with Peak(sae.W_dec) as peak, FlopCounterMode(display=False) as search:
        one.update(sae, forward, rows, 0)
    with peak, FlopCounterMode(display=False) as use:
        one.value(sae, forward, rows).backward()
    a_step = use.get_total_flops() / config.every + search.get_total_flops() / getattr(config, "refresh", 1)
    assert 100 * a_step / (10 * B * d_sae * D) <= MOST[name, d_sae]
    assert 4 * d_sae * D <= peak.most < GB  # the decoder's gradient is the least
