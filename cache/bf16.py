"""bfloat16: as a Zarr data type, as bits in numpy, as a torch view.

The Zarr name is `bfloat16` of the zarr-extensions registry; zarr-python has no such type of its own. Importing `cache`
registers it (zarr 3.1 never loads entry points); from zarr 3.2 on the entry point does it without the import.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import ml_dtypes
import numpy as np
from jaxtyping import Float32, UInt16
from zarr.core.dtype.common import HasEndianness, HasItemSize  # no public name; without them `bytes` loses its endian
from zarr.dtype import ZDType, data_type_registry

if TYPE_CHECKING:
    import torch

try:
    from zarr.errors import DataTypeValidationError  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # zarr < 3.3
    from zarr.dtype import DataTypeValidationError  # type: ignore[attr-defined, unused-ignore]

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_NAN_BITS = 0x7FC0


@dataclass(frozen=True, kw_only=True, slots=True)
class BFloat16(ZDType[Any, Any], HasItemSize, HasEndianness):
    """The data type `bfloat16` of zarr-extensions, with ml_dtypes values in memory.

    Source: zarr-developers/zarr-extensions, data-types/bfloat16 (no configuration; fill values as for IEEE floats).
    """

    dtype_cls: ClassVar[Any] = type(_BFLOAT16)
    _zarr_v3_name: ClassVar[Any] = "bfloat16"
    _zarr_v2_name: ClassVar[Any] = "bfloat16"

    @property
    def item_size(self) -> int:
        """Bytes of one value."""
        return 2

    @classmethod
    def _check_native_dtype(cls, dtype: Any) -> Any:  # type: ignore[override]
        return dtype == _BFLOAT16

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> "BFloat16":
        """The Zarr type of a numpy type."""
        if cls._check_native_dtype(dtype):
            return cls()
        raise DataTypeValidationError(f"{dtype} is not bfloat16")

    def to_native_dtype(self) -> Any:
        """The numpy type; ml_dtypes has no byte-swapped bfloat16."""
        if self.endianness not in (None, "little"):
            raise DataTypeValidationError("only little-endian bfloat16 is supported")
        return _BFLOAT16

    @classmethod
    def _from_json_v2(cls, data: Any) -> "BFloat16":
        raise DataTypeValidationError("bfloat16 is a type of Zarr format 3")

    @classmethod
    def _from_json_v3(cls, data: Any) -> "BFloat16":
        named = isinstance(data, dict) and data.get("name") == "bfloat16" and not data.get("configuration")
        if data == "bfloat16" or named:
            return cls()
        raise DataTypeValidationError(f"{data!r} is not bfloat16")

    def to_json(self, zarr_format: Any) -> Any:
        """The `data_type` of a metadata document."""
        if zarr_format != 3:
            raise DataTypeValidationError("bfloat16 is a type of Zarr format 3")
        return "bfloat16"

    def _check_scalar(self, data: Any) -> Any:
        return isinstance(data, int | float | np.floating | np.integer | ml_dtypes.bfloat16)

    def cast_scalar(self, data: Any) -> Any:
        """A bfloat16 of a number."""
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} is no bfloat16 scalar")
        return ml_dtypes.bfloat16(data)

    def default_scalar(self) -> Any:
        """Zero."""
        return ml_dtypes.bfloat16(0)

    def to_json_scalar(self, data: Any, *, zarr_format: Any) -> Any:
        """The JSON form of a fill value."""
        value = float(data)
        if np.isnan(value):
            bits = int(np.asarray(data, _BFLOAT16).view("<u2"))
            return "NaN" if bits == _NAN_BITS else f"0x{bits:04x}"
        if np.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value

    def from_json_scalar(self, data: Any, *, zarr_format: Any) -> Any:
        """A fill value from its JSON form."""
        if isinstance(data, str) and data.startswith("0x"):
            return np.uint16(int(data, 16)).view(_BFLOAT16)
        if isinstance(data, str):
            return ml_dtypes.bfloat16(float(data.replace("Infinity", "inf")))
        return self.cast_scalar(data)


def register() -> None:
    """Make zarr-python know the type; calling it again changes nothing."""
    data_type_registry.register("bfloat16", BFloat16)


def to_float32(bits: UInt16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """The exact float32 values of bfloat16 bits."""
    widened = bits.astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)


def from_float32(values: Float32[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """bfloat16 bits of float32 values, rounded to nearest, ties to even, as torch and the hardware do."""
    return np.ascontiguousarray(values).astype(_BFLOAT16).view(np.uint16)


def has_nonfinite(bits: UInt16[np.ndarray, "*shape"]) -> bool:
    """Whether any value is NaN or infinite, at memory speed and without a temporary.

    Positive non-finite bits are 0x7F80 and above as signed numbers; negative ones are 0xFF80 and above as unsigned.
    """
    return bool(bits.size) and bool(bits.view(np.int16).max() >= 0x7F80 or bits.max() >= 0xFF80)


def torch_view(bits: UInt16[np.ndarray, "*shape"]) -> "torch.Tensor":
    """The same memory as a torch.bfloat16 tensor."""
    import torch  # here, so that `python -m cache` and a machine without torch can use everything else

    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def bits_of(values: "torch.Tensor | np.ndarray") -> UInt16[np.ndarray, "*shape"]:
    """The bits of a bfloat16 tensor or array, without a copy where the values are contiguous and on the CPU.

    Raises:
        TypeError: values of any other type; rounding is never done silently.
    """
    if isinstance(values, np.ndarray):
        if values.dtype == _BFLOAT16:
            return np.ascontiguousarray(values).view(np.uint16)
        if values.dtype == np.uint16:
            return np.ascontiguousarray(values)
        raise TypeError(f"wanted bfloat16 values (or their uint16 bits), got {values.dtype}: round them explicitly")
    import torch

    if values.dtype != torch.bfloat16:
        raise TypeError(f"wanted bfloat16 values, got {values.dtype}: round them explicitly with .to(torch.bfloat16)")
    return values.detach().cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
