"""What only a GPU can show: that it trains what a CPU trains."""

import json
from pathlib import Path

import pytest
import torch

from tests.train.planted_runs import make_cache, request, run
from train import kernels

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
