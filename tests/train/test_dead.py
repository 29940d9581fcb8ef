"""Dead latents: counted in rows, listed once in a while, pointed at badly reconstructed rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.planted_training import B, F, as_rows, context, member, random_rows, random_sae
from train.codes import Code, Entries
from train.config import TrainingConfig
from train.dead import Silence, resample
from train.errors import TrainError
from train.optim import Optimiser
from train.sae import SAE

DEAD = [2, 3, 60]
ALIVE = [latent for latent in range(F) if latent not in DEAD]


def silence(dead_after: int = 10, every: int = 1, d_sae: int = 4) -> Silence:
    return Silence(d_sae, dead_after, every, torch.device("cpu"))


def code(*rows: tuple[float, ...]) -> Code:
    return Code(len(rows[0]), dense_BF=torch.tensor(rows, dtype=torch.float32))


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_silence_is_counted_in_rows_since_a_latent_was_last_on(form: str) -> None:
    one, sae = silence(), random_sae("topk")
    for given in (code((1, 0, 0, 0), (0, 2, 0, 0)), code((0, 0, 0, 0), (0, 1, 1, 0)), code((0, 0, 0, 0), (1, 0, 0, 0))):
        one.observe(given if form == "dense" else Code(4, entries=given.entries), given.n_rows, sae)
    assert one.rows_F.tolist() == [0, 2, 2, 6]


def test_an_entry_that_was_kept_although_it_is_off_is_silent() -> None:
    one = silence()
    kept = Entries(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), torch.tensor([0, 2]))
    one.observe(Code(4, entries=kept), 1, random_sae("topk"))
    assert one.rows_F.tolist() == [1, 0, 1, 1]


def test_a_latent_is_dead_after_dead_after_rows_and_alive_once_it_fires() -> None:
    one, sae, nothing = silence(dead_after=4), random_sae("topk"), code((0, 0, 0, 0), (0, 0, 0, 0))
    one.observe(nothing, 2, sae)
    one.look(0, sae)
    assert one.dead.tolist() == []
    one.observe(nothing, 2, sae)
    assert float(one.share()) == 1.0
    one.look(1, sae)
    assert one.dead.tolist() == [0, 1, 2, 3]
    one.observe(code((0, 0, 3, 0)), 1, sae)
    one.look(2, sae)
    assert one.dead.tolist() == [0, 1, 3]


def test_the_list_is_looked_at_every_so_many_steps() -> None:
    one, sae = silence(dead_after=1, every=3), random_sae("topk")
    one.observe(code((0, 0, 0, 0)), 1, sae)
    assert [(one.look(step, sae), len(one.dead)) for step in (1, 2, 3)] == [(False, 0), (False, 0), (True, 4)]


def some_dead(architecture: str = "topk", **settings: Any) -> tuple[SAE, Silence, Optimiser]:
    sae, one = random_sae(architecture, **settings), silence(every=1, d_sae=F)
    optimiser = Optimiser(sae, TrainingConfig())
    sae.losses(random_rows(), context()).total().backward()
    optimiser.step(1e-3)
    one.rows_F[DEAD] = 100
    one.look(0, sae)
    return sae, one, optimiser


def resampled(x_BD: Tensor, architecture: str = "topk", **settings: Any) -> tuple[SAE, SAE, Optimiser]:
    """An SAE, and what resampling made of its dead latents."""
    before = some_dead(architecture, **settings)[0]
    sae, one, optimiser = some_dead(architecture, **settings)
    assert resample(sae, one, optimiser, x_BD, torch.Generator().manual_seed(0)) == len(DEAD)
    assert (len(one.dead), int(one.rows_F.max())) == (0, 0)
    return before, sae, optimiser


def test_a_resampled_latent_points_at_a_row_with_an_encoder_a_fifth_as_long_as_the_livings() -> None:
    x_BD = random_rows()
    before, sae, optimiser = resampled(x_BD)
    direction_BD = torch.nn.functional.normalize(x_BD - sae.b_dec.detach(), dim=1)
    for latent in DEAD:
        assert float((direction_BD @ sae.W_dec[latent].detach()).max()) == pytest.approx(1, abs=1e-5)
    living = before.W_enc.T[ALIVE].norm(dim=1).mean()
    torch.testing.assert_close(sae.W_enc.T[DEAD], sae.W_dec[DEAD] * 0.2 * living)
    assert not sae.b_enc[DEAD].any()
    for name, moments in optimiser.adam.state.items():
        for moment in moments.values():
            if name != "b_dec":
                rows = moment.T if name == "W_enc" else moment
                assert not rows[DEAD].any()
            assert moment.any(), "what is alive keeps its moments"


def test_resampling_leaves_the_living_alone() -> None:
    before, sae, _ = resampled(random_rows())
    assert torch.equal(sae.W_dec[ALIVE], before.W_dec[ALIVE])
    assert torch.equal(sae.W_enc.T[ALIVE], before.W_enc.T[ALIVE])
    assert torch.equal(sae.b_enc[ALIVE], before.b_enc[ALIVE])
    assert torch.equal(sae.b_dec, before.b_dec)


def test_badly_reconstructed_rows_are_drawn() -> None:
    """One row is wrong by 30 times as much as the others: its chance is 30⁴ times theirs."""
    x_BD = random_rows()
    x_BD[5] *= 30
    _, sae, _ = resampled(x_BD)
    direction_D = torch.nn.functional.normalize(x_BD[5] - sae.b_dec.detach(), dim=0)
    assert float((sae.W_dec[DEAD].detach() @ direction_D).max()) == pytest.approx(1, abs=1e-5)


def test_free_decoder_rows_get_the_livings_length() -> None:
    before, sae, _ = resampled(random_rows(), "relu", form="april")
    length = before.W_dec[ALIVE].norm(dim=1).mean()
    torch.testing.assert_close(sae.W_dec[DEAD].norm(dim=1), length.expand(len(DEAD)))


@pytest.mark.parametrize("form", ["unit", "april"])
def test_resampling_works_when_every_latent_is_dead(form: str) -> None:
    sae, one, optimiser = some_dead("relu", form=form)
    one.rows_F[:] = 100
    one.look(0, sae)
    resample(sae, one, optimiser, random_rows(), torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in sae.parameters())
    assert (sae.W_dec.norm(dim=1) > 0).all()


@pytest.mark.parametrize("architecture", ["gated", "jumprelu"])
def test_a_resampled_latent_fires_on_the_row_that_it_points_at(architecture: str) -> None:
    """Whatever made it silent: a magnitude's bias, or a threshold."""
    sae, one, optimiser = some_dead(architecture)
    with torch.no_grad():
        if architecture == "gated":
            sae.get_parameter("b_mag")[DEAD] = -100.0
        else:
            sae.get_parameter("log_threshold")[DEAD] = 5.0
    x_BD = random_rows()
    resample(sae, one, optimiser, x_BD, torch.Generator().manual_seed(0))
    assert (sae.encode(x_BD).fired()[DEAD] > 0).all()


def test_a_run_resamples_at_its_own_steps_alone() -> None:
    one = member("relu", l1=0.1, steps=10, dead_after=B, dead_every=2, resample_every=4, warmup=0)
    with torch.no_grad():
        one.sae.b_enc[7] = -1000.0
    bias = []
    for step in range(6):
        one.step(as_rows(random_rows(step)), report=False)
        bias.append(float(one.sae.b_enc[7].detach()))
    assert all(value < -900 for value in bias[:4])
    assert all(value > -1 for value in bias[4:])


def test_resampling_between_two_looks_is_refused() -> None:
    with pytest.raises(TrainError, match="resample_every must be a multiple of dead_every=100, got 250"):
        TrainingConfig(resample_every=250)
