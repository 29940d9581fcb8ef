"""How well a feed mixes: the variance of batch means over that of independent draws.

    python -m benchmarks.mixing --cache caches/miniature_128 --save      # writes benchmarks/results/mixing.md

*Simulated*, from sequence numbers alone: the variance of a row's value is shared among its shard, its document (a run
of consecutive sequences), its sequence and the token itself. The shares are assumed, and rather larger than one expects
of text, so that bad mixing shows. *Real*: batches of a cache's vectors, all dimensions added up.
A batch of windows has less to say than one of rows however well it is mixed, for neighbours are alike. So it is held
against independent rows (what windows cost) and against independent windows (what the pool costs).
Shapes: b batches, n items (rows or windows) of a batch, W window, D d_model.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import cache
from benchmarks.measure import machine, table
from cache.reader import CacheReader
from train.feed import Feed, FeedConfig
from train.feed.order import Order


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How well batches are mixed."""

    variance: float
    """Variance of batch means over that of as many independent rows; 1 is perfect."""
    of_windows: float
    """The same over that of as many independent windows: what is left is the pool's doing."""
    documents: float
    """Distinct documents in a batch."""


@dataclass(frozen=True, kw_only=True)
class Correlated:
    """A cache of strongly correlated rows."""

    sequences: int = 131_072
    context: int = 128
    shard_sequences: int = 512
    document_sequences: int = 4
    shares: tuple[float, float, float] = (0.02, 0.18, 0.10)
    """Of the variance: shard, document, sequence; the token has the rest."""

    def values(self, rng: np.random.Generator) -> np.ndarray:
        """What the rows of each sequence have in common, [sequences]."""
        numbers = np.arange(self.sequences)
        total = np.zeros(self.sequences)
        for share, size in zip(self.shares, (self.shard_sequences, self.document_sequences, 1), strict=True):
            group = numbers // size
            total += np.sqrt(share) * rng.standard_normal(group[-1] + 1)[group]
        return total

    @property
    def token_share(self) -> float:
        """Share of the variance that is each token's own."""
        return 1 - sum(self.shares)


def of_order(correlated: Correlated, order: Order, batch: int, *, draws: int, seed: int = 0, window: int = 1) -> Mixing:
    """Mixing of an order's batches over one epoch, over several draws of the cache's values.

    Args:
        correlated: the simulated cache.
        order: of all its sequences.
        batch: rows of a global batch.
        draws: how often values are drawn for the same order.
        seed: of the values.
        window: W; sequences are cut into windows from their first position on.
    """
    share, items = batch // window // order.parts, correlated.context // window
    streams = []
    for part in range(order.parts):
        stream = []
        for chapter in range(order.chapters(part)):
            numbers = order.chapter(part, 0, chapter)
            shuffled = order.shuffled(part, 0, chapter, len(numbers) * items)
            stream.append(numbers[shuffled // items].astype(np.int32))
        streams.append(np.concatenate(stream))
    whole = min(len(stream) for stream in streams) // share
    sequence = np.concatenate([stream[: whole * share].reshape(whole, share) for stream in streams], axis=1)
    return of_batches(correlated, sequence, draws=draws, seed=seed, window=window)


def of_batches(
    correlated: Correlated, sequence_bn: np.ndarray, *, draws: int, seed: int = 0, window: int = 1
) -> Mixing:
    """Mixing of batches, given the sequence of each of their rows or windows."""
    rng = np.random.default_rng(seed)
    batch = sequence_bn.shape[1] * window
    variances = [correlated.values(rng)[sequence_bn].mean(1).var() for _ in range(draws)]
    document_bn = np.sort(sequence_bn // correlated.document_sequences, axis=1)
    distinct = 1 + (np.diff(document_bn, axis=1) != 0).sum(1)
    # The tokens' own part is independent whatever the order: its share is known and need not be drawn.
    token = correlated.token_share
    variance = float(np.mean(variances)) * batch + token
    return Mixing(
        variance=variance,
        of_windows=variance / ((1 - token) * window + token),
        documents=float(distinct.mean()),
    )


def of_feed(reader: CacheReader, layer: int, config: FeedConfig) -> Mixing:
    """Mixing of one epoch of a cache's real vectors."""
    means, documents = [], []
    rows = items = 0
    total_D, square, item_square = torch.zeros(reader.meta.d_model, dtype=torch.float64), 0.0, 0.0
    with Feed(reader, [layer], config, epochs=1) as feed:
        for batch in feed:
            x_nWD = batch.x.double().reshape(-1, config.window, reader.meta.d_model)
            mean_nD = x_nWD.mean(1)
            rows, items = rows + x_nWD.shape[0] * config.window, items + len(x_nWD)
            total_D += x_nWD.sum((0, 1))
            square, item_square = square + float(x_nWD.square().sum()), item_square + float(mean_nD.square().sum())
            if len(x_nWD) == config.items:  # the last batch may be short
                means.append(mean_nD.mean(0))
                documents.append(len(torch.unique(batch.document)))
    centre = float((total_D / rows).square().sum())
    spread = float((torch.stack(means) - total_D / rows).square().sum(1).mean())
    return Mixing(
        variance=spread * config.batch / (square / rows - centre),
        of_windows=spread * config.items / (item_square / items - centre),
        documents=float(np.mean(documents)),
    )


def simulated_rows(batch: int, windows: tuple[int, ...]) -> Iterator[list[str]]:
    """One line a pool at the default block."""
    correlated, config = Correlated(sequences=65_536), FeedConfig()
    for pool in (2048, 4096, 8192, 16384):
        numbers = np.arange(correlated.sequences)
        order = Order(sequences=numbers, seed=0, parts=1, block=config.block, pool_sequences=pool)
        found = [of_order(correlated, order, batch, draws=4, window=window) for window in windows]
        yield [f"{pool:,} of {correlated.sequences:,}", f"{batch:,}", *cells(found)]


def real_rows(reader: CacheReader, layer: int, windows: tuple[int, ...]) -> Iterator[list[str]]:
    """One line a pool; the first has the proportions that the defaults have with 10M tokens."""
    split = int((reader.split() == 0).sum())
    tenth = split // 10
    scaled = tenth // 4 // max(windows) * max(windows)
    for pool, batch in ((tenth, scaled), (tenth, 2048), (split // 4, 2048), (split, 2048)):
        configs = [FeedConfig(batch=batch, pool_sequences=pool, window=window) for window in windows]
        found = [of_feed(reader, layer, config) for config in configs]
        yield [f"{pool:,} of {split:,}", f"{batch:,}", *cells(found)]


def cells(found: list[Mixing]) -> list[str]:
    rows, windows = found
    return [
        f"{rows.variance:.2f}", f"{rows.documents:.0f}",
        f"{windows.variance:.2f}", f"{windows.of_windows:.2f}", f"{windows.documents:.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", help="a cache, for its real vectors; without it only the simulation is run")
    parser.add_argument("--layer", type=int, help="of it (default: the last)")
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/mixing.md")
    asked = parser.parse_args()
    windows = (1, asked.window)
    header = ["pool, sequences", "batch, rows", "rows: variance", "documents",
              f"windows of {asked.window}: over independent rows", "over independent windows", "documents"]  # fmt: skip
    out = ["# Mixing", "", *machine(), ""]
    out += [
        "Variance of batch means over that of independent draws (1 is perfect; the bar is ≤ 1.3 of rows at the default"
        " pool of 8,192 sequences), and distinct documents a batch. Neighbours are alike, so a batch of windows varies"
        " more than one of rows however it is mixed; over independent windows, what is above 1 is the pool's doing.",
        "",
    ]
    correlated = Correlated(sequences=65_536)
    shares = f"documents of {correlated.document_sequences} sequences; shares of variance: {correlated.shares}"
    out += [
        f"## Simulated: shard, document, sequence; {shares}",
        "",
        *table(header, list(simulated_rows(2048, windows))),
    ]
    if asked.cache:
        reader = cache.open(asked.cache)
        layer = reader.layers[-1] if asked.layer is None else asked.layer
        out += ["", f"## Real: layer {layer} of {reader.meta.model}, {reader.n_sequences:,} sequences of"]
        out[-1] += (
            f" {reader.meta.context} (the first line has the proportions of 8,192 sequences, 10M tokens, 2,048 rows)"
        )
        out += ["", *table(header, list(real_rows(reader, layer, windows)))]
    print("\n".join(out))
    if asked.save:
        (Path(__file__).parent / "results" / "mixing.md").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
