"""Files of an exported SAE: written whole or not at all, read with every surprise named.

What comes from disk is a stranger's: weights are read as safetensors or through torch's weights-only reader, never as
a pickle that may run code, and nothing is allocated on a claim that the file's own bytes do not cover.
"""

import io
import json
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cache import atomic
from cache.checksum import hex_digits
from cache.errors import CacheError
from train.errors import TrainError
from train.inference import InferenceSAE

OURS: Final = "silo"
"""Key of the object that holds what a format has no place for; other readers ignore it."""
_JSON_LIMIT: Final = 16 << 20
_DAMAGE: Final = (  # what torch's reader and zipfile were seen to raise, or may raise, on damaged bytes
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
_T = TypeVar("_T")


def write(folder: Path, weights: tuple[str, bytes], document: tuple[str, Mapping[str, Any]]) -> None:
    """Write the weights and then the JSON document, which completes the folder.

    A kill between the two leaves weights that the old document's checksum does not fit, which reading refuses.

    Raises:
        TrainError: the disk is full or the folder cannot be written.
    """
    name, content = document[0], json.dumps(document[1], indent=2, allow_nan=False).encode() + b"\n"
    target = folder.resolve()
    for file, data in (weights, (name, content)):
        try:
            atomic.write_file(target.parent, f"{target.name}/{file}", data, sync=True)
        except (OSError, CacheError) as error:
            atomic.partial_path(target / file).unlink(missing_ok=True)
            why = getattr(error, "strerror", None) or error
            raise TrainError(f"{folder / file}: {why} while writing: check the disk and save again") from error


def read(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        TrainError: it is not there or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrainError(f"{path}: {error.strerror or error}: give a folder that holds a saved SAE") from error


def safetensors_weights(path: Path, content: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        TrainError: damaged.
    """
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise TrainError(f"{path} is no safetensors file or a damaged one ({error}): fetch it again") from error


def torch_weights(path: Path, content: bytes) -> dict[str, Tensor]:
    """Tensors of a file that `torch.save` wrote, read without running what it may contain.

    Raises:
        TrainError: damaged, not torch's zip format, compressed, or anything but a dict of tensors by name.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True) if stored else None
    except _DAMAGE as error:
        first = str(error).split("\n", maxsplit=1)[0][:120]
        raise TrainError(f"{path} is damaged or holds more than tensors, refused ({first})") from error
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and _plain(v) for k, v in loaded.items()):
        raise TrainError(f"{path} must hold a dict of dense tensors by name, as torch.save(ae.state_dict(), …) writes")
    return {name: tensor.detach() for name, tensor in loaded.items()}


def _plain(value: object) -> bool:
    """A dense tensor whose storage holds all of it: a stride of 0 can claim terabytes from a few bytes."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


@dataclass(frozen=True)
class Document:
    """A JSON object from disk, and where it came from."""

    path: Path
    fields: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Document":
        """Parse a file.

        Raises:
            TrainError: missing, too large, or no JSON object.
        """
        content = read(path)
        if len(content) > _JSON_LIMIT:
            raise TrainError(f"{path} has {len(content):,} bytes, more than any configuration: not one")
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise TrainError(f"{path} is no JSON ({error}): fetch it again") from error
        if not isinstance(fields, dict):
            raise TrainError(f"{path} must hold a JSON object, got a {type(fields).__name__}")
        return cls(path, fields)

    def get(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        """A field of the type asked for; JSON's null counts as absent.

        Raises:
            TrainError: absent without a default, or of another type.
        """
        value = self.fields.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            got = "nothing" if value is None else repr(value)
            raise TrainError(f"{self.path} needs {name!r} as {kind.__name__}, got {got}")
        return value

    def within(self, name: str) -> "Document":
        """A nested object, empty where there is none."""
        return Document(self.path, self.get(name, dict, {}))

    def scalars(self) -> dict[str, str | int | float | bool]:
        """The fields that are text, numbers or truth values."""
        return {name: value for name, value in self.fields.items() if isinstance(value, str | bool | int | float)}


def check_linear(sae: InferenceSAE, holder: str) -> None:
    """Refuse what no other library computes.

    Raises:
        TrainError: an SAE with group biases.
    """
    if sae.n_groups:
        raise TrainError(
            f"{holder} cannot hold group biases (x̂ would lack a part): train without ortho_groups.biases to export"
        )


def ours(sae: InferenceSAE, weights: bytes) -> dict[str, Any]:
    """What every format needs beside its own fields to be read back without loss."""
    return {
        "architecture": sae.architecture,
        "k": sae.k,
        "groups": list(sae.groups),
        "weights_crc32c": hex_digits(weights),
    }


def restored(document: Document, weights: bytes, may_be: tuple[str, ...]) -> tuple[str, int, tuple[int, ...]] | None:
    """Architecture, k and groups where the file is one of ours, None where it is another library's.

    Raises:
        TrainError: the weights are not the ones that this document was saved with, or fields that do not fit.
    """
    if OURS not in document.fields:
        return None
    own = document.within(OURS)
    if own.get("weights_crc32c", str) != hex_digits(weights):
        raise TrainError(
            f"{document.path.parent}: the weights are not those that {document.path.name} was saved with (damaged, or a"
            " save was interrupted): save or export it again"
        )
    architecture, groups = own.get("architecture", str), own.get("groups", list)
    if architecture not in may_be or not all(type(width) is int for width in groups):
        raise TrainError(f"{document.path}: its object {OURS!r} does not fit it: export it again")
    return architecture, own.get("k", int), tuple(groups)


def take(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Check names and shapes; floating-point tensors come as float32, contiguous.

    Raises:
        TrainError: missing or unknown names, wrong shapes.
    """
    missing, unknown = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise TrainError(f"{path} {' and '.join(parts)}: wanted the tensors {', '.join(sorted(wanted))}")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise TrainError(f"{path}: {name} must be {list(shape)}, got {list(tensors[name].shape)}")
    return {
        name: tensor.float().contiguous() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }


def built(path: Path, **fields: Any) -> InferenceSAE:
    """An SAE of a file's contents.

    Raises:
        TrainError: as InferenceSAE, with the file named.
    """
    try:
        return InferenceSAE(**fields)
    except TrainError as error:
        raise TrainError(f"{path}: {error}") from error


def layer_of(hook_name: object) -> dict[str, int]:
    """The layer that a hook's name tells: `blocks.12.hook_resid_post` is 12."""
    found = re.match(r"blocks\.(\d{1,6})\.", hook_name) if isinstance(hook_name, str) else None
    return {"layer": int(found[1])} if found else {}
