"""What only a GPU can show: that it trains what a CPU trains."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.train.planted_runs import make_cache, request, run
from train import checkpoint, kernels
from train.graph import CudaGraphs
from train.kernels import plain, products, sparse

pytestmark = pytest.mark.gpu
BASES = ["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu", "relu_april", "temporal", "ortho_active"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("caches") / "planted")


@pytest.mark.parametrize("variant", BASES)
def test_a_gpu_trains_what_a_cpu_trains(variant: str, planted: Path, tmp_path: Path) -> None:
    """Products are rounded to TensorFloat-32 there, so a few selections may differ: scores agree, bits do not."""
    settings = {"window": 8} if variant == "temporal" else {}
    found = {}
    for device in ("cpu", "cuda"):
        (folder,) = run(planted, tmp_path / device, [request(variant, **settings)], device=device)
        found[device] = json.loads((folder / "summary.json").read_text())
    assert found["cuda"]["held_out"]["fvu"] == pytest.approx(found["cpu"]["held_out"]["fvu"], rel=0.03)
    assert found["cuda"]["train"]["l0"] == pytest.approx(found["cpu"]["train"]["l0"], rel=0.03)


@pytest.mark.parametrize(("d_sae", "k"), [(256, 8), (512, 64)])
def test_kernels_on_a_gpu_give_what_they_give_on_a_cpu(d_sae: int, k: int) -> None:
    """Forward and every gradient, on the sparse and on the dense side of the rule."""
    torch.set_float32_matmul_precision("highest")
    generator = torch.Generator().manual_seed(0)
    x_BD, w_DF, w_FD = (torch.randn(*s, generator=generator) for s in ((64, 32), (32, d_sae), (d_sae, 32)))
    results = []
    for device in ("cpu", "cuda"):
        x, encoder, decoder = (one.to(device) for one in (x_BD, w_DF.T.contiguous().T, w_FD))
        encoder.requires_grad_(), decoder.requires_grad_()
        bias_F, bias_D = torch.zeros(d_sae, device=device, requires_grad=True), torch.zeros(32, device=device)
        selected = kernels.select_top_k(x, encoder.detach(), bias_F.detach(), k)
        values_n = kernels.encode(x, encoder, bias_F, selected)
        x_hat_BD = kernels.decode(values_n, selected.features_n, selected.offsets, decoder, bias_D)
        (x_hat_BD - x).square().sum().backward()
        found = [x_hat_BD, encoder.grad, decoder.grad, bias_F.grad]
        results.append([one.detach().cpu() for one in found if one is not None])
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("variant", ["topk", "relu", "relu_april", "gated", "jumprelu"])
def test_recorded_steps_end_with_the_bits_of_steps_taken_one_by_one(
    variant: str, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 steps with warm-up and decay, a report every 4, and checkpoints; the feed's threads go on meanwhile."""
    recorded, record = list[CudaGraphs](), CudaGraphs.record

    def counted(graphs: CudaGraphs, step: Callable[[], object]) -> Callable[[], None]:
        replay = record(graphs, step)
        recorded.append(graphs)
        return replay

    monkeypatch.setattr(CudaGraphs, "record", counted)
    states = []
    for graph in ("off", "auto"):
        asked = [request(variant, graph=graph, steps=200, dead_after=10**6)]
        (folder,) = run(planted, tmp_path / graph, asked, device="cuda")
        states.append(checkpoint.load(folder, 200).tensors)
    assert recorded, "the steps of the second run were recorded"
    assert [name for name, one in states[0].items() if not torch.equal(one, states[1][name])] == []


def test_products_of_rounded_operands_are_those_of_a_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    a_MK, b_NK = (torch.randn(*shape, generator=generator) for shape in ((64, 256), (512, 256)))
    found = []
    for device in ("cpu", "cuda"):
        with products.using("bfloat16", torch.device(device)):
            found.append(products.addmm(torch.ones(512).to(device), a_MK.to(device), b_NK.to(device).T).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-4)


def test_triton_gives_what_plain_gives_and_the_same_bits_each_time() -> None:
    """At the size of a real run, with rows of uneven length and a latent that all rows use."""
    pytest.importorskip("triton")
    from train.kernels import triton_sparse

    rows, d_model, d_sae, k = 512, 2304, 18432, 64
    generator = torch.Generator("cuda").manual_seed(0)
    f_BF = torch.rand(rows, d_sae, generator=generator, device="cuda") - (1 - k / d_sae)
    f_BF[3] = f_BF[3].abs() * (f_BF[3] > -0.5)
    f_BF[5], f_BF[:, 7] = -1, 0.25
    entries = plain.from_dense(f_BF)
    w_FD = torch.randn(d_sae, d_model, generator=generator, device="cuda")
    x_BD = torch.randn(rows, d_model, generator=generator, device="cuda")

    def results(module: ModuleType) -> tuple[Tensor, ...]:
        sums_BD, dots_n = module.gather_sum(*entries, w_FD, x_BD[0]), module.gather_dot(*entries[1:], w_FD, x_BD)
        return sums_BD, dots_n, *module.scatter_sum(*entries, x_BD, d_sae)

    once, again, expected = results(triton_sparse), results(triton_sparse), results(plain)
    for one, same, other in zip(once, again, expected, strict=True):
        assert torch.equal(one, same)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5 * float(other.abs().max()))
    assert sparse._kernels(x_BD, rows * k, rows, d_sae * 8) is triton_sparse
