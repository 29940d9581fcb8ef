"""Files compressed with Zstandard, read as one stream of bytes."""

import io
from pathlib import Path
from typing import Any, Final

import zstandard

READ_BYTES: Final = 2**17


def open_zstd(file: Path) -> io.BufferedReader:
    """The content of all frames of a file, one behind the other; reading raises EOFError where the last one is torn.

    (`zstandard.open` takes a torn file for a short one.)
    """
    return io.BufferedReader(_Frames(file.open("rb")), READ_BYTES)


class _Frames(io.RawIOBase):
    """Decompresses frame after frame."""

    def __init__(self, stored: io.BufferedReader) -> None:
        self._stored, self._decompressor = stored, zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._inside = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._stored.read(READ_BYTES)
            if not block and self._inside:
                raise EOFError("the file ends inside a compressed frame: it is torn")
            if not block:
                return 0
            self._ready = self._decompress(block)
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def _decompress(self, block: bytes) -> bytes:
        found = []
        try:
            while block:
                found.append(self._frame.decompress(block))
                block, self._inside = self._frame.unused_data, not self._frame.eof
                if self._frame.eof:
                    self._frame = self._decompressor.decompressobj()
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        return b"".join(found)

    def close(self) -> None:
        self._stored.close()
        super().close()
