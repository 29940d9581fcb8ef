"""Scores of any number of SAEs from evaluation caches, with no language model in memory.

Artefacts are the outer loop and SAEs the inner one: a chunk of residuals is read once for all SAEs that fit into memory
together, and the means over texts serve sparse probing, SCR and TPP alike.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from evals import sparse_codes
from evals.absorption import AbsorptionOptions, absorption
from evals.artefacts.folder import Artefacts
from evals.chunks import chunks
from evals.core import core
from evals.errors import EvalError
from evals.first_letter.words import Words
from evals.geometry_scores import geometry
from evals.pooling import Pooled, pool
from evals.scores import Scores
from evals.scr import scr
from evals.sparse_probing import sparse_probing
from evals.subject import Subject
from evals.temporal_scores import temporal
from evals.tpp import tpp
from train.inference import InferenceSAE

OF_ROWS: Final[Mapping[str, Callable[..., list[Scores]]]] = {"core": core, "temporal": temporal, "geometry": geometry}
"""Evaluations of the core rows after those of the losses."""
OF_TEXTS: Final = ("sparse_probing", "scr", "tpp")
EVALUATIONS: Final = (*OF_ROWS, *OF_TEXTS, "absorption")
HOST_BYTES: Final = 3 * 2**30
"""For the texts' mean latents of the SAEs that are scored together."""
SHARE_OF_FREE: Final = 0.3
"""Of the device's memory, for the weights of the SAEs that are scored together."""
_ENTRY_BYTES: Final = 16
"""Of an entry of the means: a value and its place, twice while the chunks' are put together."""

Say = Callable[[str], None]
Options = Mapping[str, Mapping[str, Any]]


def score(
    subjects: Sequence[Subject],
    artefacts: Artefacts,
    layer: int,
    evaluations: Sequence[str],
    *,
    device: str | torch.device = "cpu",
    options: Options | None = None,
    say: Say,
    host_bytes: int = HOST_BYTES,
) -> Iterator[tuple[Subject, Scores]]:
    """Scores of SAEs of one layer, as they are found: every SAE gives one of each evaluation.

    Args:
        subjects: SAEs of this layer and of the artefacts' width.
        artefacts: what `make eval-harvest` made.
        layer: of the residuals.
        evaluations: some of `EVALUATIONS`.
        device: where rows are encoded.
        options: evaluation → keyword arguments of its function.
        say: where progress is told.
        host_bytes: for the texts' mean latents; decides how many SAEs share a reading of the texts.

    Raises:
        EvalError: an unknown evaluation, artefacts that are missing, or, after all the others are through, SAEs that
            an evaluation refused.
        CacheError: a damaged cache.
    """
    for name in evaluations:
        if name not in EVALUATIONS:
            raise EvalError(f"evaluations from caches are {', '.join(EVALUATIONS)}, got {name!r}")
    data = _Data(artefacts, layer, [name for name in EVALUATIONS if name in evaluations])
    chosen, refused = options or {}, list[str]()
    for group in _groups(subjects, data, torch.device(device), host_bytes):
        saes = [one.sae.to(device) for one in group]
        for name in data.evaluations:
            own = chosen.get(name, {})
            if name in OF_ROWS:
                with _Timed(say, name, len(saes)):
                    found = _of_rows(name, group, saes, data, own, refused)
                yield from found
        if data.texts or "absorption" in data.evaluations:
            yield from _of_texts(group, saes, data, chosen, say, refused)
    if refused:
        raise EvalError("; ".join(refused))


class _Data:
    """What the artefacts hold for some evaluations, asked for before anything is computed."""

    def __init__(self, artefacts: Artefacts, layer: int, evaluations: list[str]) -> None:
        self.artefacts, self.layer, self.evaluations = artefacts, layer, evaluations
        self.tasks: dict[str, Any] = {}
        self.baselines: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        profile = artefacts.plan.profile
        self.first_row = min(profile.recon_rows, artefacts.cache("core").n_sequences - 1) if self._rows() else 0
        of_texts = [name for name in OF_TEXTS if name in evaluations]
        if of_texts:
            self.tasks = artefacts.json("tasks")
        if of_texts or "absorption" in evaluations:
            self.baselines = artefacts.json(f"baselines_L{layer}")
            self.tensors = artefacts.tensors(f"baselines_L{layer}")
        self.words: dict[str, Words] = {}
        if "absorption" in evaluations:
            self._words()
        self.texts = sorted({task["texts"] for name in of_texts for task in self.tasks[name]})
        for name in self.texts:
            artefacts.cache(f"texts/{name}").layer(layer)

    def _words(self) -> None:
        body = self.artefacts.json("absorption")
        for split in ("train", "test", "stage2"):
            self.words[split] = Words.read(self.artefacts.cache(f"absorption/{split}"), self.layer, body[split])

    def _rows(self) -> bool:
        return any(name in OF_ROWS for name in self.evaluations)


def _of_rows(
    name: str,
    group: Sequence[Subject],
    saes: Sequence[InferenceSAE],
    data: _Data,
    own: Mapping[str, Any],
    refused: list[str],
) -> list[tuple[Subject, Scores]]:
    """What one reading of the core rows gives for all SAEs; where one of them is refused, the others read again."""
    reader = data.artefacts.cache("core")

    def evaluate(some: Sequence[InferenceSAE]) -> list[Scores]:
        return list(OF_ROWS[name](list(some), reader, data.layer, start=data.first_row, **own))

    try:
        return list(zip(group, evaluate(saes), strict=True))
    except EvalError as error:
        if len(saes) == 1:
            refused.append(f"{group[0].name}: {name}: {error}")
            return []
    return [
        one
        for subject, sae in zip(group, saes, strict=True)
        for one in _of_rows(name, [subject], [sae], data, own, refused)
    ]


def _of_texts(
    group: Sequence[Subject],
    saes: Sequence[InferenceSAE],
    data: _Data,
    options: Options,
    say: Say,
    refused: list[str],
) -> Iterator[tuple[Subject, Scores]]:
    """What is scored SAE by SAE: from the means over texts, and from words."""
    pooled: list[dict[str, Pooled]] = [{} for _ in saes]
    for name in data.texts:
        reader = data.artefacts.cache(f"texts/{name}")
        with _Timed(say, f"texts {name}", len(saes)):
            for own, one in zip(pooled, pool(reader, data.layer, saes)[1], strict=True):
                own[name] = one
    for name in (*OF_TEXTS, "absorption"):
        if name not in data.evaluations:
            continue
        with _Timed(say, name, len(saes)):
            for subject, sae, own in zip(group, saes, pooled, strict=True):
                try:
                    found = _one(name, sae, own, data, options.get(name, {}))
                except EvalError as error:
                    refused.append(f"{subject.name}: {name}: {error}")
                    continue
                yield subject, found


def _one(name: str, sae: InferenceSAE, pooled: Mapping[str, Pooled], data: _Data, own: Mapping[str, Any]) -> Scores:
    if name == "sparse_probing":
        return sparse_probing(pooled, data.tasks[name], data.baselines[name], **own)
    if name == "absorption":
        chosen = AbsorptionOptions(**own)
        return absorption(sae, **data.words, truth=data.tensors, options=chosen)
    if sae.n_groups:
        raise EvalError(
            "closed-form ablation takes the decoder for linear, and this SAE's group biases are not: score it without"
            " scr and tpp"
        )
    ablate = scr if name == "scr" else tpp
    return ablate(pooled, sae.W_dec.cpu(), data.tensors, data.tasks[name], **own)


def _groups(subjects: Sequence[Subject], data: _Data, device: torch.device, host_bytes: int) -> Iterator[list[Subject]]:
    """SAEs that fit into memory together, in their order; at least one."""
    group: list[Subject] = []
    used = 0.0
    for subject in subjects:
        cost = max(_share_of_host(subject.sae, data, host_bytes), _share_of_device(subject.sae, device))
        if group and used + cost > 1:
            yield group
            group, used = [], 0.0
        group.append(subject)
        used += cost
    if group:
        yield group


def _share_of_host(sae: InferenceSAE, data: _Data, host_bytes: int) -> float:
    """Of the bytes for means over texts, judged by the first texts of each set."""
    entries = 0.0
    for name in data.texts:
        reader = data.artefacts.cache(f"texts/{name}")
        first = next(iter(chunks(reader, data.layer, stop=16)))
        codes = sparse_codes.encode(sae, first.x_RD.to(sae.device))
        sequence_n = first.sequence_R.repeat_interleave(codes.offsets.diff().cpu())
        distinct = len((sequence_n * sae.d_sae + codes.features_n.cpu()).unique())
        entries += distinct / (first.stop - first.start) * reader.n_sequences
    return entries * _ENTRY_BYTES / host_bytes


def _share_of_device(sae: InferenceSAE, device: torch.device) -> float:
    """Of the memory that a device gives to weights; on a CPU they are there already."""
    if device.type != "cuda":
        return 0.0
    weights = sum(tensor.numel() * tensor.element_size() for tensor in sae.tensors().values())
    return weights / (SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0])


class _Timed:
    """Says how long something took."""

    def __init__(self, say: Say, what: str, saes: int) -> None:
        self.say, self.what, self.saes = say, what, saes

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.say(f"{self.what}: {self.saes} SAEs in {time.monotonic() - self.start:.1f} s")
