"""A language model that is asked for residual vectors only, and stops as soon as it has them.

Layer L is the output of decoder block L, counted from 0: TransformerLens `blocks.L.hook_resid_post`, and
`hidden_states[L + 1]` of transformers for every block but the last, where transformers returns the final norm instead.
Shapes: B rows, T positions, D d_model.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from harvest.blocks import BlockOutputs, find_blocks, learned_positions, text_config
from harvest.errors import HarvestError
from harvest.hub import Origin, content_revision, resolve_model, unavailable

CONFIGURATIONS: Final = Path(__file__).parent / "configurations"
ATTENTION: Final = ("eager", "sdpa")  # what the tests hold equal to eager
DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What decides the numbers a model gives; the fields are named as in `cache.schema.CacheMeta`."""

    model: str
    model_revision: str
    """40-hex commit, or content hash of a local folder; of random weights: a hash of configuration, seed and depth."""
    model_dtype: str = "bfloat16"
    """What the forward pass computes in."""
    random_weights: bool = False
    attn_implementation: str = "eager"
    d_model: int


class ResidualModel:
    """A causal language model as a source of residual vectors.

    Threads may call it at once; hooks are on the model during calls alone.
    """

    def __init__(self, model: PreTrainedModel, identity: ModelIdentity, n_layers: int) -> None:
        """Wrap a model that is already on its device.

        Raises:
            HarvestError: the list of decoder blocks cannot be found.
        """
        self.model = model.train(False).requires_grad_(False)
        self.identity = identity
        self.blocks = find_blocks(model)
        self._outputs = BlockOutputs(self.blocks)
        self.n_layers = n_layers
        self.d_model = identity.d_model

    @property
    def bos_token_id(self) -> int | None:
        """The configuration's BOS; packing takes the tokenizer's."""
        bos = self.model.config.get_text_config().bos_token_id
        return bos if isinstance(bos, int) else None

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """Longest context the model was made for, where its configuration says so."""
        limit = getattr(text_config(self.model.config), "max_position_embeddings", None)
        return limit if isinstance(limit, int) else None

    @property
    def device(self) -> torch.device:
        """Where the model is; token ids are moved there."""
        device: torch.device = self.model.device
        return device

    def check_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The wanted layers in ascending order, each once.

        Raises:
            HarvestError: none, one out of range, or one that `drop_above` has dropped.
        """
        wanted = tuple(sorted(set(layers)))
        last = len(self.blocks) - 1
        if not wanted or wanted[0] < 0 or wanted[-1] > last:
            dropped = f" (of {self.n_layers}; the blocks above are not loaded)" if last < self.n_layers - 1 else ""
            raise HarvestError(
                f"layer {', '.join(map(str, layers)) or 'none'} is out of range: "
                f"{self.identity.model} has layers 0 to {last}{dropped}"
            )
        return wanted

    def check_context(self, context: int) -> None:
        """Refuse more positions than a model has learned vectors for; rotary ones have no such end.

        Raises:
            HarvestError: with both numbers.
        """
        limit = self.max_positions
        if limit is not None and context > limit and learned_positions(self.model, limit):
            name = self.identity.model
            raise HarvestError(
                f"context {context} is longer than the {limit} positions that {name} has: use CONTEXT={limit}"
            )

    def drop_above(self, layer: int) -> None:
        """Free the memory of the blocks above `layer`; they cannot be asked for again.

        Raises:
            HarvestError: the layer is out of range.
        """
        self.check_layers([layer])
        del self.blocks[layer + 1 :]

    @torch.no_grad()
    def residuals(self, tokens_BT: Int[Tensor, "B T"], *, layers: Sequence[int]) -> dict[int, Float[Tensor, "B T D"]]:
        """Output of the wanted blocks, in the model's dtype, on its device; nothing above the last of them is computed.

        Padding on the right needs no attention mask: attention is causal, so no real position sees it. (A mask would
        leave padding rows in sliding-window layers with nothing to attend to.) Vectors at padding mean nothing.

        Args:
            tokens_BT: Token ids, BOS included.
            layers: Block numbers.

        Raises:
            HarvestError: a layer is out of range, or this kind of block does not return one vector a position.
        """
        wanted = self.check_layers(layers)
        tokens_BT = tokens_BT.to(self.device, torch.long, non_blocking=True)
        with self._outputs.collect(wanted) as residuals:
            self.model(input_ids=tokens_BT, use_cache=False)
        shape = (*tokens_BT.shape, self.d_model)
        for layer in wanted:
            if (got := tuple(getattr(residuals.get(layer), "shape", ()))) != shape:
                name = type(self.blocks[layer]).__name__
                raise HarvestError(
                    f"block {layer} ({name}) should have returned a tensor of {shape}, got {got or 'none'}"
                )
        return residuals


def load_model(
    name: str | Origin,
    *,
    revision: str | None = None,
    dtype: str = "bfloat16",
    attention: str | None = None,
    device: str | torch.device = "cpu",
    last_layer: int | None = None,
) -> ResidualModel:
    """Load a causal language model from a hub id, a local folder in Hugging Face format, or `miniature`.

    Only safetensors are read and no code of the repository is run.

    Args:
        name: Hub id, folder or `miniature`; or what `resolve_model` made of it.
        revision: Branch, tag or commit; resolved to the commit.
        dtype: What the forward pass computes in.
        attention: `eager` or `sdpa`; by default eager where the attention logits are soft-capped, else transformers'
            own choice.
        device: Where to put the model. On `meta` it is an outline: identity, blocks and shapes, no weights are read.
        last_layer: The blocks above it are dropped before the model goes to its device.

    Raises:
        HarvestError: the model cannot be had (with the remedies), or an argument is out of range.
    """
    origin = name if isinstance(name, Origin) else resolve_model(name, revision)
    options = _source_options(origin)
    try:
        config = AutoConfig.from_pretrained(origin.location, **options)
        how = {"dtype": _dtype(dtype), "attn_implementation": choose_attention(config, attention)}
        if torch.device(device).type == "meta":
            with torch.device(device):
                model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    config, trust_remote_code=False, **how
                )
        else:
            model = AutoModelForCausalLM.from_pretrained(
                origin.location, config=config, use_safetensors=True, **how, **options
            )
    except HarvestError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise unavailable(origin.name, error) from error
    identity = _identity(model, origin.name, origin.revision, dtype)
    loaded = ResidualModel(model, identity, text_config(config).num_hidden_layers)
    if last_layer is not None:
        loaded.drop_above(last_layer)
    model.to(device)
    return loaded


def random_model(
    name: str = "google/gemma-2-2b",
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    attention: str | None = None,
    device: str | torch.device = "cpu",
    last_layer: int | None = None,
) -> ResidualModel:
    """A model of the named configuration with seeded random weights, for speed measurements; marked as such.

    The configuration is a stored copy in `harvest/configurations/` or a local folder's `config.json`; only blocks up
    to `last_layer` are built. Weights are drawn on `device`, so they repeat on the same kind of device only.

    Raises:
        HarvestError: no such configuration, or `last_layer` is out of range.
    """
    fields = _stored_configuration(name)
    config = AutoConfig.for_model(**fields)
    decoder = text_config(config)
    n_layers = decoder.num_hidden_layers
    depth = n_layers if last_layer is None else last_layer + 1
    if not 1 <= depth <= n_layers:
        raise HarvestError(f"layer {last_layer} is out of range: {name} has layers 0 to {n_layers - 1}")
    decoder.num_hidden_layers = depth
    if getattr(decoder, "layer_types", None):
        decoder.layer_types = decoder.layer_types[:depth]
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=_dtype(dtype), attn_implementation=choose_attention(config, attention)
        )
    what = json.dumps([fields, seed, depth], sort_keys=True)
    identity = _identity(model, name, content_revision(what.encode()), dtype, random_weights=True)
    return ResidualModel(model, identity, n_layers)


def choose_attention(config: PretrainedConfig, asked: str | None = None) -> str | None:
    """The attention implementation; None leaves the choice to transformers.

    `sdpa` has no place for the soft-cap that Gemma-2 puts on its attention logits, so there only eager is right.

    Raises:
        HarvestError: unknown, or one that would drop the soft-cap.
    """
    capped = bool(getattr(text_config(config), "attn_logit_softcapping", None))
    if asked is None:
        return "eager" if capped else None
    if asked not in ATTENTION:
        raise HarvestError(f"unknown attention {asked!r}: choose from {', '.join(ATTENTION)}")
    if capped and asked != "eager":
        raise HarvestError(f"attention {asked!r} would drop this model's attention soft-cap: use eager")
    return asked


def _source_options(origin: Origin) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": False}
    return options | ({"local_files_only": True} if origin.local else {"revision": origin.revision})


def _identity(
    model: PreTrainedModel, name: str, revision: str, dtype: str, *, random_weights: bool = False
) -> ModelIdentity:
    folder = Path(name).expanduser()
    return ModelIdentity(
        model=folder.resolve().name if folder.is_dir() else name,  # where a copy lies is not what it is
        model_revision=revision,
        model_dtype=dtype,
        random_weights=random_weights,
        attn_implementation=str(model.config._attn_implementation),
        d_model=int(text_config(model.config).hidden_size),
    )


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise HarvestError(f"unknown dtype {name!r}: choose from {', '.join(DTYPES)}")
    return DTYPES[name]


def _stored_configuration(name: str) -> dict[str, Any]:
    """The values of a configuration, from a local folder or the copies that Silo carries."""
    folder = Path(name).expanduser()
    path = folder / "config.json" if folder.is_dir() else CONFIGURATIONS / f"{name.rpartition('/')[2]}.json"
    if not path.is_file():
        stored = ", ".join(sorted(file.stem for file in CONFIGURATIONS.glob("*.json")))
        raise HarvestError(f"no configuration of {name!r} is stored: choose from {stored}, or give a local folder")
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields
