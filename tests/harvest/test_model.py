"""Residual vectors: the same bits as output_hidden_states, with nothing computed above the last wanted block."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from harvest.blocks import find_blocks
from harvest.errors import HarvestError
from harvest.model import CONFIGURATIONS, ModelIdentity, ResidualModel, choose_attention, load_model, random_model

N_LAYERS = 4
D_MODEL = 32
VOCABULARY = 97
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "gemma2": Gemma2Config(**_GROUPED, head_dim=8, sliding_window=6, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=6, query_pre_attn_scalar=8),
    "llama": LlamaConfig(**_GROUPED),
    "qwen2": Qwen2Config(**_GROUPED),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=1,
    ),
    "gpt_neox": GPTNeoXConfig(**_SHAPE),
}
FINAL_NORMS = {"norm", "ln_f", "final_layer_norm"}
FAMILIES = tuple(CONFIGS)


@cache
def build(family: str, attention: str | None = None, dtype: torch.dtype = torch.bfloat16) -> ResidualModel:
    """A tiny random model; larger weights than the default, so that every block does visible work."""
    config = CONFIGS[family]
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.mul_(6)
    identity = ModelIdentity(model=family, model_revision="0" * 40, d_model=D_MODEL)
    return ResidualModel(model, identity, N_LAYERS)


def tokens(rows: int = 3, positions: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (rows, positions), generator=generator, dtype=torch.int32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny Gemma-2 in Hugging Face format."""
    build("gemma2").model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_are_the_hidden_states_bit_for_bit(family: str) -> None:
    model = build(family)
    tokens_BT = tokens()
    with torch.no_grad():
        hidden = model.model(tokens_BT.long(), output_hidden_states=True, use_cache=False).hidden_states
    residuals = model.residuals(tokens_BT, layers=range(N_LAYERS))
    for layer in range(N_LAYERS - 1):
        assert torch.equal(residuals[layer], hidden[layer + 1])
    norm = next(
        part
        for name, part in model.model.named_modules()
        if name.split(".")[-1] in {"norm", "ln_f", "final_layer_norm"}
    )
    assert torch.equal(norm(residuals[N_LAYERS - 1]), hidden[-1])  # transformers' last entry is after the final norm


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_is_its_raw_output_and_one_pass_equals_many(family: str) -> None:
    model = build(family)
    tokens_BT = tokens()
    together = model.residuals(tokens_BT, layers=(3, 0, 2))
    assert list(together) == [0, 2, 3]
    for layer, x_BTD in together.items():
        assert x_BTD.shape == (3, 16, D_MODEL)
        assert x_BTD.dtype == torch.bfloat16
        assert not x_BTD.requires_grad
        assert torch.equal(x_BTD, model.residuals(tokens_BT, layers=(layer,))[layer])


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_above_the_last_wanted_block_runs(family: str) -> None:
    model = build.__wrapped__(family)
    calls: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    for name, part in model.model.named_modules():
        part.register_forward_pre_hook(count(name))
    names = {id(part): name for name, part in model.model.named_modules()}
    model.residuals(tokens(), layers=(0, 1))
    assert [calls.get(names[id(block)], 0) for block in model.blocks] == [1, 1, 0, 0]
    above = [
        name for name in calls if name.split(".")[-1] in {"norm", "ln_f", "final_layer_norm", "lm_head", "embed_out"}
    ]
    assert above == []
    assert isinstance(model.model.get_output_embeddings(), nn.Linear)  # it exists, and was not called


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_leaves_nothing_on_the_model(family: str) -> None:
    model = build(family)
    with torch.no_grad():
        before = model.model(tokens().long(), use_cache=False).logits
    hooks = [list(block._forward_hooks) for block in model.blocks]
    model.residuals(tokens(), layers=(1,))
    with pytest.raises(IndexError):
        model.residuals(torch.full((1, 4), VOCABULARY, dtype=torch.int32), layers=(1,))
    assert hooks == [list(block._forward_hooks) for block in model.blocks]
    with torch.no_grad():
        assert torch.equal(before, model.model(tokens().long(), use_cache=False).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_real_position(family: str) -> None:
    """Each right-padded row equals the same tokens alone, within bf16 rounding of another batch shape."""
    model = build(family)
    tokens_BT = tokens()
    lengths_B = torch.tensor([16, 9, 4])
    padded_BT = torch.where(torch.arange(16) < lengths_B[:, None], tokens_BT, 0)
    x_BTD = model.residuals(padded_BT, layers=(3,))[3]
    assert x_BTD.isfinite().all()
    for row, length in enumerate(lengths_B.tolist()):
        alone_TD = model.residuals(tokens_BT[row : row + 1, :length], layers=(3,))[3][0]
        assert relative_error(x_BTD[row, :length], alone_TD) < 2**-6


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_fills_the_padding_real_positions_keep_their_bits(family: str) -> None:
    model = build(family)
    tokens_BT = tokens()
    lengths_B = torch.tensor([16, 9, 4])
    real_BT = torch.arange(16) < lengths_B[:, None]
    zeros_BTD = model.residuals(torch.where(real_BT, tokens_BT, 0), layers=(3,))[3]
    other_BTD = model.residuals(torch.where(real_BT, tokens_BT, 5), layers=(3,))[3]
    assert torch.equal(zeros_BTD[real_BT], other_BTD[real_BT])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
def test_sdpa_equals_eager_within_rounding(family: str) -> None:
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2**-5)):
        eager, sdpa = (build(family, attention, dtype) for attention in ("eager", "sdpa"))
        assert sdpa.model.config._attn_implementation == "sdpa"
        x_BTD, y_BTD = (model.residuals(tokens(), layers=(3,))[3] for model in (eager, sdpa))
        assert relative_error(y_BTD, x_BTD) < tolerance


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Root of the squared error over the squared norm."""
    got, wanted = got.float(), wanted.float()
    return float((got - wanted).norm() / wanted.norm())


def test_the_soft_cap_allows_eager_only() -> None:
    assert choose_attention(CONFIGS["gemma2"]) == "eager"
    assert choose_attention(CONFIGS["llama"]) is None
    with pytest.raises(HarvestError, match="soft-cap: use eager"):
        choose_attention(CONFIGS["gemma2"], "sdpa")
    with pytest.raises(HarvestError, match="choose from eager, sdpa"):
        choose_attention(CONFIGS["llama"], "flash")


def test_a_layer_out_of_range_names_the_valid_ones() -> None:
    model = build("llama")
    for layers in ((4,), (-1,), (0, 12), ()):
        with pytest.raises(HarvestError, match="llama has layers 0 to 3") as caught:
            model.residuals(tokens(), layers=layers)
        assert "\n" not in str(caught.value)


def test_blocks_are_not_mistaken_for_experts_or_a_vision_tower() -> None:
    """Both have module lists of the same length."""
    experts = MixtralConfig(**_GROUPED, num_local_experts=N_LAYERS)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": N_LAYERS, "num_attention_heads": 4}
    both = Gemma3Config(
        text_config={**_GROUPED, "head_dim": 8}, vision_config={**vision, "image_size": 28, "patch_size": 14}
    )
    for config, block in ((experts, "MixtralDecoderLayer"), (both, "Gemma3DecoderLayer")):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert [type(part).__name__ for part in find_blocks(model)] == [block] * N_LAYERS


def test_a_block_that_gives_something_else_is_refused() -> None:
    model = build.__wrapped__("llama")
    model.blocks[1].register_forward_hook(lambda *_: {"hidden": None})
    with pytest.raises(
        HarvestError, match=r"block 1 \(LlamaDecoderLayer\) should have returned a tensor of \(3, 16, 32\)"
    ):
        model.residuals(tokens(), layers=(1,))


def test_blocks_that_cannot_be_found_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build.__wrapped__("llama").model
    monkeypatch.setattr(model.config, "num_hidden_layers", 7)  # other tests build from the same configuration
    with pytest.raises(HarvestError, match=r"LlamaForCausalLM.*num_hidden_layers = 7 blocks, found layers \(4\)"):
        find_blocks(model)


def test_a_local_folder_is_known_by_its_content(saved: Path) -> None:
    first = load_model(str(saved))
    assert first.identity.model_dtype == "bfloat16"
    assert first.identity.attn_implementation == "eager"
    assert not first.identity.random_weights
    assert len(first.identity.model_revision) == 40
    assert (first.n_layers, first.d_model, first.bos_token_id, first.vocab_size) == (N_LAYERS, D_MODEL, 2, VOCABULARY)
    assert first.max_positions == 8192
    assert next(first.model.parameters()).dtype == torch.bfloat16
    built = build("gemma2", "eager")
    x, y = (model.residuals(tokens(), layers=(2,))[2] for model in (first, built))
    assert torch.equal(x, y)
    config = saved / "config.json"
    config.write_text(config.read_text().replace("10000.0", "20000.0"))
    assert load_model(str(saved)).identity.model_revision != first.identity.model_revision


def test_dropped_blocks_are_gone_and_the_rest_is_unchanged(saved: Path) -> None:
    whole, part = load_model(str(saved)), load_model(str(saved), last_layer=1)
    x, y = (model.residuals(tokens(), layers=(0, 1)) for model in (whole, part))
    assert torch.equal(x[1], y[1])
    assert len(part.blocks) == 2
    assert part.n_layers == N_LAYERS
    with pytest.raises(HarvestError, match=r"has layers 0 to 1 \(of 4; the blocks above are not loaded"):
        part.residuals(tokens(), layers=(2,))
    with pytest.raises(HarvestError, match="has layers 0 to 3"):
        load_model(str(saved), last_layer=4)


def test_random_weights_are_seeded_marked_and_built_only_as_deep_as_needed(saved: Path) -> None:
    first, again, other = (random_model(str(saved), seed=seed, last_layer=1) for seed in (0, 0, 1))
    assert first.identity.random_weights
    assert first.identity == again.identity != other.identity
    assert len(first.blocks) == 2
    assert first.n_layers == N_LAYERS
    x, y, z = (model.residuals(tokens(), layers=(1,))[1] for model in (first, again, other))
    assert x.isfinite().all()
    assert torch.equal(x, y)
    assert not torch.equal(x, z)
    with pytest.raises(HarvestError, match="has layers 0 to 3"):
        random_model(str(saved), last_layer=4)
    with pytest.raises(HarvestError, match="choose from gemma-2-2b"):
        random_model("owner/unknown")


def test_the_stored_configuration_is_gemma_2_2b() -> None:
    config = Gemma2Config.from_json_file(CONFIGURATIONS / "gemma-2-2b.json")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (2304, 26, 256000)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == 2_614_341_888  # the published size


def test_random_models_leave_the_global_generator_alone(saved: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    random_model(str(saved))
    assert torch.equal(torch.rand(1), wanted)


def test_the_miniature_is_its_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvest.miniature.MODEL_PATH", saved)
    loaded, folder = load_model("miniature"), load_model(str(saved))
    assert loaded.identity.model == "miniature"
    assert loaded.identity.model_revision == folder.identity.model_revision
