"""Trained SAEs in the formats of other libraries: written so that they load there, and read from there.

`sae_lens` is also the format of a run's own `sae/` folder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from train.errors import TrainError
from train.exports import dictionary_learning, sae_lens, sparsify
from train.exports.files import check_linear
from train.inference import TENSORS_OF, InferenceSAE

RUN_FOLDER: Final = "sae"


@dataclass(frozen=True)
class Format:
    """One row of the table."""

    save: Callable[[InferenceSAE, Path], None]
    load: Callable[[Path], InferenceSAE]
    files: tuple[str, str]
    """Configuration and weights: the names by which a folder is recognised."""
    architectures: tuple[str, ...]
    """What it can hold."""


_ALL: Final = tuple(TENSORS_OF)
EXPORTS: Final[dict[str, Format]] = {
    "sae_lens": Format(sae_lens.save, sae_lens.load, (sae_lens.CONFIG, sae_lens.WEIGHTS), _ALL),
    "dictionary_learning": Format(
        dictionary_learning.save,
        dictionary_learning.load,
        (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
        _ALL,
    ),
    "sparsify": Format(sparsify.save, sparsify.load, (sparsify.CONFIG, sparsify.WEIGHTS), ("topk",)),
}


def load(folder: Path) -> InferenceSAE:
    """Read a trained SAE: a run, or a folder in any of the formats.

    Raises:
        TrainError: no SAE there, an incomplete one, or as the format's own `load`.
    """
    candidates = [folder / RUN_FOLDER, folder]
    for candidate in candidates:
        for kind in EXPORTS.values():
            if all((candidate / file).is_file() for file in kind.files):
                return kind.load(candidate)
    known = "; ".join(f"{name}: {' and '.join(kind.files)}" for name, kind in EXPORTS.items())
    raise TrainError(f"{folder} holds no trained SAE (looked for {known}): give a run, or an SAE's folder")


def export(run_or_folder: Path, formats: Sequence[str], out: Path) -> list[Path]:
    """Write a run's SAE in other formats, each to `out/<format>`.

    Args:
        run_or_folder: a run, or an SAE's folder in any of the formats.
        formats: names of `EXPORTS`.
        out: the folder that gets one folder a format.

    Returns:
        The folders, in the order of `formats`.

    Raises:
        TrainError: an unknown format, one that cannot hold this architecture or its group biases (then nothing is
            written), no SAE there.
    """
    for name in formats:
        if name not in EXPORTS:
            raise TrainError(f"format must be one of {', '.join(EXPORTS)}, got {name!r}")
    sae = load(run_or_folder)
    for name in formats:
        if sae.architecture not in EXPORTS[name].architectures:
            can = ", ".join(EXPORTS[name].architectures)
            raise TrainError(f"{name} holds {can} alone, and {run_or_folder} is {sae.architecture}: leave {name} out")
        check_linear(sae, name)
    for name in formats:
        EXPORTS[name].save(sae, out / name)
    return [out / name for name in formats]
