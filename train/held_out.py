"""What a finished SAE does on rows that no training saw, as it is saved: raw units, threshold form."""

from dataclasses import asdict, dataclass, replace
from typing import Final

import torch
from torch.nn.functional import cosine_similarity

from cache.reader import CacheReader
from train.feed import Feed, FeedConfig
from train.inference import InferenceSAE

ROWS: Final = 2**14


@dataclass(frozen=True)
class HeldOut:
    """Scores on the held-out split, filtered as the training rows were; definitions as in `train/metrics.py`."""

    rows: int
    fvu: float
    """Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ the mean of these rows."""
    cosine: float
    mse: float
    l0: float
    never_active: float
    """Share of latents that are off in all these rows."""

    def to_json(self) -> dict[str, float | int]:
        """By name."""
        return asdict(self)


@torch.no_grad()
def held_out(sae: InferenceSAE, reader: CacheReader, layer: int, config: FeedConfig, device: str) -> HeldOut | None:
    """Score an SAE on at most `ROWS` held-out rows; None where the cache has none."""
    if not (reader.split() == 1).any():
        return None
    sae = sae.to(device)
    error = square = cosine = on = 0.0
    total_D = torch.zeros(sae.d_model, dtype=torch.float64, device=device)
    active_F = torch.zeros(sae.d_sae, dtype=torch.bool, device=device)
    rows = 0
    wanted = replace(config, split="held_out", window=1, parts=1)
    with Feed(reader, (layer,), wanted, device=device, epochs=1) as feed:
        for batch in feed:
            x_BD = batch.x.to(device).float()
            f_BF = sae.encode(x_BD)
            x_hat_BD = sae.decode(f_BF)
            error += float((x_BD - x_hat_BD).square().sum(dtype=torch.float64))
            square += float(x_BD.square().sum(dtype=torch.float64))
            total_D += x_BD.sum(0, dtype=torch.float64)
            cosine += float(cosine_similarity(x_BD, x_hat_BD).sum())
            on += float((f_BF > 0).sum())
            active_F |= (f_BF > 0).any(0)
            rows += len(x_BD)
            if rows >= ROWS:
                break
    variance = square - float(total_D.square().sum()) / rows
    return HeldOut(
        rows=rows,
        fvu=error / variance,
        cosine=cosine / rows,
        mse=error / rows,
        l0=on / rows,
        never_active=1 - float(active_F.double().mean()),
    )
