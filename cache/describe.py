"""A page about a cache that a person can read, and the same as JSON."""

from collections import Counter
from typing import Any

import numpy as np

from cache import commits
from cache.reader import CacheReader
from cache.statistics import BINS_AN_OCTAVE, FIRST_OCTAVE, QUANTILES


def usage(reader: CacheReader) -> dict[str, int]:
    """Bytes on disk of each array, of all statistics and of the metadata."""
    arrays = commits.committed_arrays(reader.meta, reader.state, reader.manifest)
    sizes: Counter[str] = Counter()
    for file in reader.folder.walk():
        name = file.split("/c/", 1)[0]
        name = name.split("/", 1)[0] if name.startswith("statistics/") else name
        sizes[name if name == "statistics" or name in arrays else "metadata"] += reader.folder.size(file) or 0
    return dict(sizes)


def readable(nbytes: int | float) -> str:
    """Bytes in the unit that suits them, decimal as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:,.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.4g} TB"


def summary(reader: CacheReader) -> dict[str, Any]:
    """Everything that `info` tells, as plain values."""
    meta, state, shards = reader.meta, reader.state, reader.shards
    rows = [reader.shard_range(shard) for shard in shards]
    held_out = sum(int((reader.split(r.start, r.stop) == 1).sum()) for r in rows)
    documents = [np.unique(reader.document(r.start, r.stop)) for r in rows]
    sequences = sum(len(r) for r in rows)
    return {
        "path": reader.folder.name,
        "model": meta.model,
        "model_revision": meta.model_revision,
        "model_dtype": meta.model_dtype,
        "random_weights": meta.random_weights,
        "attn_implementation": meta.attn_implementation,
        "sources": [
            f"{s.dataset} ({s.split}) @ {s.revision}" + (f" [{s.domain}]" if s.domain else "") for s in meta.sources
        ],
        "packing": meta.packing,
        "layers": list(reader.layers),
        "set_aside": {str(layer): shards for layer, shards in reader.set_aside.items()},
        "hooks": [f"blocks.{layer}.hook_{meta.hook}" for layer in reader.layers],
        "d_model": meta.d_model,
        "context": meta.context,
        "sequences": sequences,
        "planned_sequences": state.sequences,
        "tokens": sequences * meta.context,
        "documents": int(np.sum(np.unique(np.concatenate(documents)) >= 0)) if documents else 0,
        "held_out_sequences": held_out,
        "shards": len(shards),
        "shard_sequences": meta.shard_sequences,
        "codec": meta.codec,
        "quantisation": meta.quantisation,
        "bytes": sum(usage(reader).values()),
        "complete": state.complete,
        "exhausted": state.exhausted,
        "audit": dict(state.audit),
        "fingerprint": meta.fingerprint,
        "created": meta.created,
        "provenance": dict(meta.provenance),
        "norms": {str(layer): _norms(reader, layer) for layer in reader.layers} if shards else {},
    }


def page(reader: CacheReader) -> str:
    """The page."""
    s = summary(reader)
    state = "complete" if s["complete"] else f"incomplete: {s['sequences']:,} of {s['planned_sequences']:,} sequences"
    if s["exhausted"]:
        state += " (the source held no more)"
    stored = s["codec"] + (" (values went through 8 bits)" if s["quantisation"] == "int8" else "")
    lines = [
        s["path"],
        f"  state        {state}",
        f"  model        {s['model']} @ {s['model_revision'][:12]} ({s['model_dtype']}, {s['attn_implementation']})",
        *(["  WARNING      random weights: for speed measurements alone"] if s["random_weights"] else []),
        *[f"  text         {source}" for source in s["sources"]],
        f"  layers       {', '.join(map(str, s['layers']))} ({s['hooks'][0]}{' …' if len(s['hooks']) > 1 else ''})",
        *[_set_aside(layer, n, reader) for layer, n in reader.set_aside.items()],
        f"  tokens       {s['tokens']:,} = {s['sequences']:,} sequences × {s['context']} ({s['packing']})",
        f"  documents    {s['documents']:,}; {s['held_out_sequences']:,} sequences held out",
        f"  d_model      {s['d_model']}",
        f"  on disk      {readable(s['bytes'])}: {s['shards']:,} shards of {s['shard_sequences']} sequences, {stored}",
        *[f"  {name}  {value:.3g}" for name, value in s["audit"].items()],
        f"  fingerprint  {s['fingerprint'][:16]}",
        f"  created      {s['created']}",
    ]
    if s["norms"]:
        lines += [
            "",
            f"  norms without BOS   {'rms':>9}"
            + "".join(f"{f'p{q * 100:g}':>9}" for q in QUANTILES)
            + f"{'largest':>10}",
        ]
    for layer, norms in s["norms"].items():
        quantiles = "".join(f"{value:>9.4g}" for value in norms["quantiles"])
        lines.append(f"  layer {layer:<13} {norms['rms']:>9.4g}{quantiles}{norms['largest']:>10.4g}")
        lines.append(f"    largest of all: {norms['top']}")
    return "\n".join(lines)


def _set_aside(layer: int, shards: int, reader: CacheReader) -> str:
    total = reader.state.shards(reader.meta.shard_sequences)
    return (
        f"  set aside    layer {layer}, begun and not finished: {shards:,} of {total:,} shards; LAYER={layer} goes on"
    )


def _norms(reader: CacheReader, layer: int) -> dict[str, Any]:
    statistics = reader.statistics(layer)
    i = statistics.row_set("no_bos")
    t = reader.meta.context
    top = zip(statistics.top_norm[:3], statistics.top_row[:3], statistics.top_token[:3], strict=True)
    occupied = np.flatnonzero(statistics.norm_histogram[i])
    return {
        "rows": int(statistics.count[i]),
        "rms": float(np.sqrt(statistics.mean_square_norm[i])),
        "quantiles": statistics.norm_quantiles[i].tolist(),
        "largest": _bin_top(int(occupied[-1])) if len(occupied) else float("nan"),
        "top": ", ".join(
            f"{norm:.4g} at sequence {int(row) // t} position {int(row) % t} (token {int(token)})"
            for norm, row, token in top
        ),
    }


def _bin_top(index: int) -> float:
    return float(2 ** ((index + 1) / BINS_AN_OCTAVE + FIRST_OCTAVE))
