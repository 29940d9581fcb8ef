"""Text to token ids, without special tokens: the packing alone decides where BOS stands.

Text that spells a special token (`<bos>`, `<|endoftext|>`) stands for its characters: no document can forge one.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from harvest.errors import HarvestError
from harvest.hub import Origin, resolve_model, unavailable

CUT_WINDOW: Final = 2**12


class TextTokenizer:
    """A fast tokenizer with what packing has to know about it."""

    def __init__(
        self, backend: Tokenizer, *, bos_token_id: int, pad_token_id: int, special_token_ids: Sequence[int]
    ) -> None:
        """Copy the tokenizer, so that its settings here are nobody else's."""
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self.bos_token_id = bos_token_id
        self.pad_token_id = pad_token_id
        self.special_token_ids = tuple(sorted(set(special_token_ids)))
        description = json.dumps(json.loads(self._backend.to_str()), sort_keys=True)
        self.hash = hashlib.sha256(f"{description} {bos_token_id}".encode()).hexdigest()
        """sha256 of vocabulary, merges, normaliser and BOS, 64 hex digits."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Token ids of each text, in parallel threads unless TOKENIZERS_PARALLELISM forbids it."""
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))


def load_tokenizer(name: str | Origin, revision: str | None = None) -> TextTokenizer:
    """Load the tokenizer of a hub id, a local folder, `miniature`, or a model that has been resolved already.

    A tokenizer without BOS (Qwen) gets its EOS in that place, as in TransformerLens; GPT-2's and Pythia's BOS is their
    `<|endoftext|>`. Padding is the tokenizer's own, else the same id as BOS.

    Raises:
        HarvestError: it cannot be had, has no fast version, or has neither BOS nor EOS.
    """
    origin = name if isinstance(name, Origin) else resolve_model(name, revision)
    options: dict[str, Any] = {"local_files_only": True} if origin.local else {"revision": origin.revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(origin.location, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise unavailable(origin.name, error) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise HarvestError(f"the tokenizer of {origin.name} has no fast version (tokenizer.json): convert it first")
    bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if not isinstance(bos, int):
        raise HarvestError(f"the tokenizer of {origin.name} has neither a BOS nor an EOS token to begin a row with")
    pad = tokenizer.pad_token_id
    return TextTokenizer(
        backend,
        bos_token_id=bos,
        pad_token_id=pad if isinstance(pad, int) else bos,
        special_token_ids=tokenizer.all_special_ids,
    )


def cut(text: str, limit: int) -> Iterator[str]:
    """Divide a text into pieces of at most `limit` characters, before a white space that stands between two words.

    The pieces' tokens are the text's wherever no token spans such a space; a tokenizer that puts a space before every
    text (Llama 2) puts one more at each cut. Where the last `CUT_WINDOW` characters have no place, the cut is hard.
    """
    start = 0
    while len(text) - start > limit:
        end = start + limit
        window = re.compile(r"(?<=\S)\s(?=\S)").finditer(text, max(start + 1, end - CUT_WINDOW), end)
        end = max((match.start() for match in window), default=end)
        yield text[start:end]
        start = end
    yield text[start:]
