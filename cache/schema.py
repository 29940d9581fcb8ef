"""What a cache says about itself: `CacheMeta`, its exact JSON form, its fingerprint and its limits.

`FORMAT.md` is the normative text; a test holds the two against each other.
Shapes: N sequences, T positions (context), D d_model, S sequences a shard.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from cache.checksum import canonical
from cache.codecs import CODECS
from cache.errors import CacheError
from cache.fields import MAX_TEXT, check_text, is_int, is_real, refuse, short

FORMAT_VERSION: Final = 1
MAX_LAYERS: Final = 256
MAX_SEQUENCES: Final = 2**40
# Files a layer: more are unusable on any file system, and a stranger's metadata may not keep us busy for hours.
MAX_SHARDS: Final = 2**18
MAX_SHARD_BYTES: Final = 2**31  # a single write() ends at 2 GiB; larger shards also defeat staging and resume
# Refused by name when a second request differs: these decide what the numbers in the cache are.
IDENTITY: Final = (
    "model",
    "model_revision",
    "model_dtype",
    "random_weights",
    "tokenizer_hash",
    "sources",
    "context",
    "packing",
    "bos_token_id",
    "special_token_ids",
    "hook",
    "d_model",
    "attn_implementation",
    "seed",
    "held_out_fraction",
    "quantisation",
)
LAYOUT: Final = ("shard_sequences", "codec")  # how the same numbers lie on disk: `repack` changes these

PACKINGS: Final = ("pack", "truncate")
QUANTISATIONS: Final = ("none", "int8")
_HEX40 = re.compile(r"[0-9a-f]{40}")
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of text in a harvest."""

    dataset: str
    """Hub id, or a description of local files."""
    revision: str
    """40-hex commit of the data set, or a content hash of local files."""
    split: str = "train"
    weight: float = 1.0
    domain: str = ""
    """Tag written to the `domain` array; empty when the harvest has no domains."""

    def __post_init__(self) -> None:
        """Give a whole-number weight its one JSON form, so that 1 and 1.0 are the same cache."""
        if is_int(self.weight) and is_real(self.weight):
            object.__setattr__(self, "weight", float(self.weight))


@dataclass(frozen=True, kw_only=True)
class CacheMeta:
    """What is in a cache and where it came from; the attributes of its Zarr group.

    Row r of a layer is position `r % context` of sequence `r // context`: one token's residual vector [D].
    """

    model: str
    """Hub id or name of the language model."""
    model_revision: str
    """40-hex commit (of a local folder: the first 40 hex digits of a content hash); never a branch name."""
    model_dtype: str = "bfloat16"
    """What the forward pass computed in; storage is bfloat16 whatever this says."""
    random_weights: bool = False
    """True for a speed measurement without real weights; training refuses such a cache unless forced."""
    tokenizer_hash: str
    """sha256 of the tokenizer's files, 64 hex digits."""
    sources: tuple[Source, ...]
    context: int
    """T, positions a sequence."""
    packing: str
    """`pack`: documents joined, BOS at each row start and between documents; `truncate`: one document a row, padded."""
    bos_token_id: int
    """-1 when the tokenizer has none."""
    special_token_ids: tuple[int, ...] = ()
    hook: str = "resid_post"
    """The vector is the output of the decoder block: TransformerLens `blocks.{layer}.hook_resid_post`."""
    d_model: int
    attn_implementation: str = "eager"
    seed: int = 42
    held_out_fraction: float = 0.05
    """Share of documents that are never trained on, chosen by a hash of their content before packing."""
    quantisation: str = "none"
    """`none`: the harvested bits; `int8`: they went through 8 bits (lossy), whatever they lie in now."""
    shard_sequences: int = 512
    """S, sequences a shard."""
    codec: str = "raw"
    """How one sequence is encoded inside a shard; `raw` can be memory-mapped."""
    created: str
    """UTC time of creation, ISO 8601."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Commit, versions and hardware of the harvest."""

    def __post_init__(self) -> None:
        """Refuse values that no cache can have.

        Raises:
            CacheError: naming the field, what it must be and what came.
        """
        if is_int(self.held_out_fraction) and is_real(self.held_out_fraction):
            object.__setattr__(self, "held_out_fraction", float(self.held_out_fraction))
        _check_texts(self)
        _check_numbers(self)
        if self.packing not in PACKINGS:
            refuse("packing", f"one of {', '.join(PACKINGS)}", self.packing)
        if self.hook != "resid_post":
            refuse("hook", "'resid_post'", self.hook)
        if self.codec not in CODECS:
            refuse("codec", f"one of {', '.join(CODECS)}", self.codec)
        if self.quantisation not in QUANTISATIONS or (CODECS[self.codec].quantised and self.quantisation == "none"):
            refuse("quantisation", f"one of {', '.join(QUANTISATIONS)}, and int8 under codec int8", self.quantisation)
        if not _HEX40.fullmatch(self.model_revision):
            why = "a branch name would let two different caches share one description"
            refuse("model_revision", f"a 40-hex commit ({why})", self.model_revision)
        if not _HEX64.fullmatch(self.tokenizer_hash):
            refuse("tokenizer_hash", "a sha256 of 64 hex digits", self.tokenizer_hash)
        if not 1 <= len(self.sources) <= 255:
            refuse("sources", "1 to 255 sources", len(self.sources))

    @property
    def domains(self) -> tuple[str, ...]:
        """Names behind the `domain` array, in the order of first mention; empty: the cache has no such array."""
        return tuple(dict.fromkeys(source.domain for source in self.sources if source.domain))

    @property
    def sequence_bytes(self) -> int:
        """Bytes of one uncompressed bfloat16 sequence [T, D]."""
        return self.context * self.d_model * 2

    @property
    def fingerprint(self) -> str:
        """sha256 over the identity: equal for caches that hold the same numbers, whatever their layout."""
        identity = {name: value for name, value in asdict(self).items() if name in IDENTITY}
        return hashlib.sha256(canonical(identity)).hexdigest()

    def differences(self, other: "CacheMeta") -> list[str]:
        """Fields in which `other` asks for another cache than this one, as `name: have X, asked for Y`."""
        names = [name for name in IDENTITY + LAYOUT if getattr(self, name) != getattr(other, name)]
        return [f"{name}: have {short(getattr(self, name))}, asked for {short(getattr(other, name))}" for name in names]


@dataclass(frozen=True, kw_only=True)
class CacheState:
    """How far a cache is: the attributes that change while it grows."""

    layers: tuple[int, ...]
    sequences: int
    """N: planned while incomplete, true once complete."""
    complete: bool = False
    exhausted: bool = False
    """The source held no more text than this: a longer request is met by what is here."""
    audit: Mapping[str, float] = field(default_factory=dict)
    """What storing cost, measured on a sample at harvest: `layer_12/bf16_fvu` and the like."""
    manifest_crc32c: str = ""
    """Of `manifest.jsonl`; empty while incomplete."""

    def __post_init__(self) -> None:
        """Refuse impossible states.

        Raises:
            CacheError: naming the field.
        """
        listed = isinstance(self.layers, tuple) and 1 <= len(self.layers) <= MAX_LAYERS
        if not listed or not all(is_int(x) and 0 <= x < 10_000 for x in self.layers):
            refuse("layers", f"1 to {MAX_LAYERS} block numbers from 0 to 9999", self.layers)
        if list(self.layers) != sorted(set(self.layers)):
            refuse("layers", "ascending, each once", self.layers)
        if not is_int(self.sequences) or not 0 <= self.sequences <= MAX_SEQUENCES:
            refuse("sequences", f"0 to {MAX_SEQUENCES}", self.sequences)
        for name in ("complete", "exhausted"):
            if not isinstance(getattr(self, name), bool):
                refuse(name, "true or false", getattr(self, name))
        if not isinstance(self.audit, Mapping) or not all(
            isinstance(key, str) and len(key) <= MAX_TEXT and is_real(value) for key, value in self.audit.items()
        ):
            refuse("audit", "names and finite numbers", self.audit)
        digits = self.manifest_crc32c
        if not isinstance(digits, str) or (digits and not re.fullmatch("[0-9a-f]{8}", digits)):
            refuse("manifest_crc32c", "8 hex digits", digits)
        if self.complete and not self.manifest_crc32c:
            refuse("manifest_crc32c", "8 hex digits in a complete cache", self.manifest_crc32c)

    def shards(self, shard_sequences: int) -> int:
        """Number of shards that N sequences fill."""
        return -(-self.sequences // shard_sequences)


def to_attributes(meta: CacheMeta, state: CacheState) -> dict[str, Any]:
    """The group's attributes; `from_attributes` is the exact inverse."""
    attributes = {"format_version": FORMAT_VERSION, **asdict(meta), **asdict(state), "fingerprint": meta.fingerprint}
    attributes = json.loads(canonical(attributes))
    return {**attributes, "checksum": _checksum(attributes)}


def from_attributes(attributes: Any) -> tuple[CacheMeta, CacheState]:
    """Read a group's attributes, trusting nothing in them.

    Raises:
        CacheError: a newer format, a missing or unknown key, a wrong type, an impossible value, an edited field.
    """
    if not isinstance(attributes, dict):
        raise CacheError("the group's attributes are no JSON object: this is no Silo cache")
    version = attributes.get("format_version")
    if not is_int(version):
        raise CacheError("zarr.json has no format_version: this Zarr group is no Silo cache")
    if version != FORMAT_VERSION:
        raise CacheError(
            f"wanted cache format {FORMAT_VERSION}, found {short(version)}: upgrade silo-sae to read this cache"
        )
    meta_names, state_names = [{f.name for f in fields(kind)} for kind in (CacheMeta, CacheState)]
    known = meta_names | state_names | {"format_version", "fingerprint", "checksum"}
    if attributes.keys() != known:
        missing, unknown = sorted(known - attributes.keys()), sorted(attributes.keys() - known)
        raise CacheError(f"zarr.json attributes: missing {missing}, unknown {short(unknown)}: edited or damaged")
    body = {name: value for name, value in attributes.items() if name != "checksum"}
    try:
        intact = _checksum(body) == attributes["checksum"]
    except (ValueError, RecursionError):  # 1e999 reads as infinity; lists in lists in lists
        intact = False
    if not intact:
        raise CacheError("zarr.json attributes do not match their checksum: edited or damaged; restore the file")
    meta = _meta_from({name: body[name] for name in meta_names})
    state = CacheState(**{name: _tuple(body[name]) for name in state_names})
    check_shards(meta, state.sequences)
    if meta.fingerprint != body["fingerprint"]:
        raise CacheError("zarr.json: the fingerprint is not that of the fields: edited or damaged; restore the file")
    return meta, state


def check_shards(meta: CacheMeta, sequences: int) -> None:
    """Refuse a length that only a huge number of files could hold.

    Raises:
        CacheError: with the greatest length.
    """
    if sequences > MAX_SHARDS * meta.shard_sequences:
        refuse("sequences", f"at most {MAX_SHARDS * meta.shard_sequences:,} at this shard size", sequences)


def with_layout(meta: CacheMeta, *, shard_sequences: int, codec: str) -> CacheMeta:
    """The same contents laid out differently on disk; 8 bits leave their mark on the identity for good."""
    quantisation = "int8" if CODECS[codec].quantised else meta.quantisation
    return replace(meta, shard_sequences=shard_sequences, codec=codec, quantisation=quantisation)


def _meta_from(values: dict[str, Any]) -> CacheMeta:
    source_names = {f.name for f in fields(Source)}
    sources = values["sources"]
    if not isinstance(sources, list) or not all(isinstance(s, dict) and s.keys() == source_names for s in sources):
        refuse("sources", f"a list of objects with {sorted(source_names)}", sources)
    values = {name: _tuple(value) for name, value in values.items()}
    return CacheMeta(**{**values, "sources": tuple(Source(**source) for source in sources)})


def _check_texts(meta: CacheMeta) -> None:
    named = {name: getattr(meta, name) for name in ("model", "model_revision", "model_dtype", "tokenizer_hash")}
    named |= {name: getattr(meta, name) for name in ("packing", "hook", "attn_implementation", "codec", "created")}
    named["quantisation"] = meta.quantisation
    if not isinstance(meta.sources, tuple) or not all(isinstance(source, Source) for source in meta.sources):
        refuse("sources", "a tuple of Source", meta.sources)
    for source in meta.sources:
        for name in ("dataset", "revision", "split", "domain"):
            check_text(f"sources.{name}", getattr(source, name))
        if not is_real(source.weight) or source.weight <= 0:
            refuse("sources.weight", "a number above 0", source.weight)
    for name, value in named.items():
        check_text(name, value)
    if not isinstance(meta.provenance, Mapping):
        refuse("provenance", "an object of texts", meta.provenance)
    for name, value in meta.provenance.items():
        check_text("provenance", name)
        check_text(f"provenance.{name}", value)


def _check_numbers(meta: CacheMeta) -> None:
    for name, low, high in (
        ("context", 1, 2**20),
        ("d_model", 1, 2**20),
        ("shard_sequences", 1, 2**20),
        ("bos_token_id", -1, 2**31 - 1),
        ("seed", 0, 2**63 - 1),
    ):
        value = getattr(meta, name)
        if not is_int(value) or not low <= value <= high:
            refuse(name, f"a whole number from {low} to {high}", value)
    if not isinstance(meta.random_weights, bool):
        refuse("random_weights", "true or false", meta.random_weights)
    if not is_real(meta.held_out_fraction) or not 0 <= meta.held_out_fraction < 1:
        refuse("held_out_fraction", "a number from 0 to below 1", meta.held_out_fraction)
    ids = meta.special_token_ids
    if not isinstance(ids, tuple) or len(ids) > 65_536 or not all(is_int(x) and 0 <= x < 2**31 for x in ids):
        refuse("special_token_ids", "a list of token ids", ids)
    if meta.sequence_bytes * meta.shard_sequences > MAX_SHARD_BYTES:
        size = meta.sequence_bytes * meta.shard_sequences
        most = max(1, MAX_SHARD_BYTES // meta.sequence_bytes)
        refuse("shard_sequences", f"shards of at most 2 GiB (here at most {most} sequences)", f"{size:,} bytes")


def _checksum(attributes: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(attributes)).hexdigest()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
