"""Orthogonality against planted truth: parents whose children absorb them, and what each penalty does about it.

16 parents with 4 exclusive children each and 32 independent features in 64 dimensions, dictionaries of 160 latents,
2500 steps of 512 rows, 3 seeds. Directions are near orthogonal, or children lie at cosine 0.3 from their parents, where
every orthogonality penalty could do harm. Means over seeds are held against what was measured when the penalties
were designed.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch.nn.functional import normalize

from evals.planted import Hierarchy, absorption, best_cosine, best_f1, fvu
from tests.evals.planted_truth import Scores, over_seeds
from train.architectures import ARCHITECTURES
from train.config import RunConfig, TrainingConfig
from train.feed.batch import Batch
from train.feed.config import FeedConfig
from train.member import Member
from train.normalise import Normalisation
from train.penalties import PENALTIES
from train.penalties.grams import frame_potential
from train.rows import Rows
from train.run_folder import RunFolder
from train.world import World

pytestmark = pytest.mark.slow

STEPS, B, F, K = 2500, 512, 160, 6
RATE: Final = 0.06
"""Of the independent features, so that the truth's own L0 is 5.76: K is a whole number just above it."""


def source(seed: int, child_cosine: float = 0.0) -> Hierarchy:
    return Hierarchy(seed=seed, p_independent=RATE, child_cosine=child_cosine)


def trained(planted: Hierarchy, architecture: str, penalty: str, settings: Mapping[str, Any], seed: int) -> Member:
    """A member of one run, fed with the source's rows."""
    sample_nD = planted.sample(20_000, torch.Generator().manual_seed(10**6 + seed)).x
    mean_D = sample_nD.mean(0)
    normalisation = Normalisation(mean_D, float((sample_nD - mean_D).square().mean()) ** 0.5, "planted")
    sizes = {"prefixes": (0.15, 0.3, 0.6, 1.0)} if architecture == "matryoshka" else {}
    config = RunConfig(
        variant=penalty or architecture,
        architecture=architecture,
        sae=ARCHITECTURES[architecture].config(d_model=planted.d_model, d_sae=F, k=K, k_aux=16, seed=seed, **sizes),
        penalties={penalty: PENALTIES[penalty].config(**settings)} if penalty else {},
        training=TrainingConfig(steps=STEPS, lr=3e-3, warmup=200, b_dec="zero", dead_after=50 * B, dead_every=20),
        feed=FeedConfig(batch=B),
        cache="planted",
        sequences=1,
        layer=0,
    )
    member = Member(config, RunFolder(Path("nowhere")), normalisation, device="cpu", world=World(), metadata={})
    generator = torch.Generator().manual_seed(seed + 7)
    none = torch.zeros(B, dtype=torch.int32)
    for _ in range(STEPS):
        x_BD = planted.sample(B, generator).x
        batch = Batch(x_BD.bfloat16(), none.long(), none, none, none, torch.zeros(0, dtype=torch.uint8))
        member.step(Rows(normalisation.apply(x_BD), 1, batch), report=False)
    assert member.check(Rows(x_BD, 1, batch))
    return member


@torch.no_grad()
def scores(member: Member, planted: Hierarchy) -> Scores:
    """On 20,000 fresh rows, with the code that the saved SAE would give."""
    sample = planted.sample(20_000, torch.Generator().manual_seed(99))
    sae = member.sae.eval()
    x_nD = member.normalisation.apply(sample.x)
    codes_nF = sae.encode(x_nD).dense
    alive_nD = normalize(sae.W_dec[(codes_nF > 0).any(0)], dim=1)
    truth = (sample.latents, planted.directions)
    return {
        "absorption": float(absorption(codes_nF, sae.W_dec, *truth, planted.family).mean()),
        "fvu": float(fvu(x_nD, codes_nF @ sae.W_dec + sae.b_dec)),
        "f1": float(best_f1(codes_nF, sample.latents).score_P.mean()),
        "mmc": float((alive_nD @ alive_nD.T).fill_diagonal_(-1).max(1).values.mean()),
        "frame": float(frame_potential(sae.W_dec)),
        "mcs": float(best_cosine(sae.W_dec, planted.directions).score_P.mean()),
    }


@cache
def measured(
    penalty: str, settings: tuple[tuple[str, Any], ...] = (), architecture: str = "batchtopk", cosine: float = 0.0
) -> Scores:
    """Mean over seeds."""

    def run(seed: int) -> Scores:
        planted = source(seed, cosine)
        return scores(trained(planted, architecture, penalty, dict(settings), seed), planted)

    return over_seeds(f"{penalty or architecture} {dict(settings)} children at {cosine}", run)


def test_without_a_penalty_children_absorb_their_parents() -> None:
    assert 0.15 <= measured("")["absorption"] <= 0.30


def test_ortho_active_ends_absorption_and_reconstructs_no_worse() -> None:
    base, found = measured(""), measured("ortho_active")
    assert found["absorption"] <= 0.04
    assert found["fvu"] <= base["fvu"]
    assert found["f1"] >= base["f1"] + 0.02


def test_ortho_importance_cuts_absorption_and_finds_more_of_the_truth() -> None:
    base, found = measured(""), measured("ortho_importance")
    assert found["absorption"] <= 0.08
    assert found["fvu"] <= base["fvu"]
    assert found["f1"] >= base["f1"] + 0.02


def test_ortho_pairs_cuts_absorption() -> None:
    """With the 13 pairs of its default share, of 12,720."""
    base, found = measured(""), measured("ortho_pairs")
    assert found["absorption"] <= 0.09
    assert found["fvu"] <= base["fvu"]
    assert found["f1"] >= base["f1"] + 0.02


def test_ortsae_cuts_absorption_and_spreads_the_decoder() -> None:
    found = measured("ortsae")
    assert found["absorption"] <= 0.06
    assert found["mmc"] <= 0.13


def test_the_frame_potential_leaves_near_duplicates_alone() -> None:
    """The theorem at work: a spectrum that is white to three digits says nothing about the nearest neighbour."""
    base, found = measured(""), measured("ortho_adaptive", (("mode", "fixed"), ("coeff", 1.0)))
    assert found["frame"] <= 0.001 * base["frame"]
    assert found["mmc"] == pytest.approx(base["mmc"], rel=0.1)


def test_matryoshka_cuts_absorption() -> None:
    assert measured("", architecture="matryoshka")["absorption"] <= 0.07


@pytest.mark.parametrize("penalty", ["ortho_active", "ortho_importance"])
def test_where_children_truly_lie_near_their_parents_no_harm_is_done(penalty: str) -> None:
    """MCS: how well the true directions are found."""
    assert measured(penalty, cosine=0.3)["mcs"] >= measured("", cosine=0.3)["mcs"] - 0.02
