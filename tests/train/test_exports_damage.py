"""Files of an SAE that are torn, false or hostile: refused with the reason, and nothing of them is run."""

import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cache import atomic
from tests.train.planted_saes import D, F, planted_sae, rows, same_function
from train.errors import TrainError
from train.exports import EXPORTS, dictionary_learning, sae_lens

FORMATS = list(EXPORTS)


@pytest.fixture(params=FORMATS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A format and a folder that holds a topk SAE in it."""
    name: str = request.param
    EXPORTS[name].save(planted_sae("topk"), tmp_path / "sae")
    return name, tmp_path / "sae"


def test_weights_cut_short_are_refused(saved: tuple[str, Path]) -> None:
    name, folder = saved
    path = folder / EXPORTS[name].files[1]
    whole = path.read_bytes()
    unsign(folder / EXPORTS[name].files[0])
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(TrainError, match=str(path)):
            EXPORTS[name].load(folder)


def test_one_flipped_bit_in_the_weights_is_refused(saved: tuple[str, Path]) -> None:
    name, folder = saved
    path = folder / EXPORTS[name].files[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(TrainError, match=r"damaged, or a save was interrupted"):
        EXPORTS[name].load(folder)


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_file_is_named(saved: tuple[str, Path], which: int) -> None:
    name, folder = saved
    missing = folder / EXPORTS[name].files[which]
    missing.unlink()
    with pytest.raises(TrainError, match=rf"{missing}: No such file"):
        EXPORTS[name].load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null", b'{"architecture": 3}'])
def test_a_configuration_that_is_none_is_refused(saved: tuple[str, Path], content: bytes) -> None:
    name, folder = saved
    (folder / EXPORTS[name].files[0]).write_bytes(content)
    with pytest.raises(TrainError, match=str(folder)):
        EXPORTS[name].load(folder)


@pytest.mark.parametrize(
    "change", [{"architecture": "gated"}, {"k": 0}, {"k": None}, {"groups": ["x"]}, {"groups": [F]}]
)
def test_our_own_object_is_not_trusted_either(change: dict[str, Any], tmp_path: Path) -> None:
    planted_sae("topk").save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["metadata"]["silo"] |= change
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(TrainError, match=str(tmp_path)):
        sae_lens.load(tmp_path)


def unsign(path: Path) -> None:
    """Make a configuration look like another library's."""
    config = json.loads(path.read_text())
    config.pop("silo", None)
    config.get("metadata", {}).pop("silo", None)
    path.write_text(json.dumps(config))


# --- ae.pt ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ae(tmp_path: Path) -> Path:
    """The path of an ae.pt whose config.json is another library's."""
    dictionary_learning.save(planted_sae("topk"), tmp_path)
    unsign(tmp_path / "config.json")
    return tmp_path / "ae.pt"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(ae: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    state = torch.load(ae, weights_only=True)
    torch.save(state | {"threshold": Bomb(mark)}, ae)
    with pytest.raises(TrainError, match="damaged or holds more than tensors"):
        dictionary_learning.load(tmp_path)
    ae.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(TrainError, match="damaged or holds more than tensors"):
        dictionary_learning.load(tmp_path)
    assert not mark.exists()
    pickle.loads(ae.read_bytes())
    assert mark.exists(), "the bomb must be a live one"


def state_with(**changes: Any) -> Callable[[Path], None]:
    """Rewrite an ae.pt with keys changed, or removed where None; a dunder stands for the dot."""

    def rewrite(path: Path) -> None:
        state = torch.load(path, weights_only=True) | {name.replace("__", "."): new for name, new in changes.items()}
        torch.save({name: value for name, value in state.items() if value is not None}, path)

    return rewrite


def as_list(path: Path) -> None:
    """The tensors without their names."""
    torch.save(list(torch.load(path, weights_only=True).values()), path)


def compressed(path: Path) -> None:
    """The same archive, deflated."""
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    path.write_bytes(stream.getvalue())


BAD_STATES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a key missing": (state_with(b_dec=None), r"lacks b_dec: wanted the tensors b_dec, decoder"),
    "a key too many": (state_with(extra=torch.zeros(1)), "has unknown extra"),
    "no decoder": (state_with(decoder__weight=None), r"lacks the matrix decoder\.weight"),
    "a decoder of one axis": (state_with(decoder__weight=torch.zeros(F)), "lacks the matrix"),
    "a transposed encoder": (state_with(encoder__weight=torch.zeros(D, F)), r"encoder\.weight must be \[40, 12\], got"),
    "not a number": (state_with(b_dec=torch.full((D,), float("nan"))), "b_dec has 12 values that are not"),
    "k as two numbers": (state_with(k=torch.tensor([6, 6])), r"k must be \[\], got \[2\]"),
    "a list": (as_list, "must hold a dict of dense tensors"),
    "text among tensors": (state_with(note="hello"), "must hold a dict of dense tensors"),
    "a tensor larger than its bytes": (
        state_with(decoder__weight=torch.zeros(1).expand(10**6, 10**6)),
        "must hold a dict of dense tensors",
    ),
    "a sparse tensor": (state_with(b_dec=torch.ones(D).to_sparse()), "must hold a dict of dense tensors|damaged"),
    "a compressed archive": (compressed, "must hold a dict of dense tensors"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_state_that_is_no_sae_is_refused_with_the_reason(case: str, ae: Path) -> None:
    damage, message = BAD_STATES[case]
    damage(ae)
    with pytest.raises(TrainError, match=message):
        dictionary_learning.load(ae.parent)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed and added, half of them near the start, where the structure is."""
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 40])):
        at = rng.randrange(len(out) if rng.random() < 0.5 else min(len(out), 600))
        operation = rng.random()
        if operation < 0.6:
            out[at] = rng.randrange(256)
        elif operation < 0.8:
            del out[at : at + rng.randrange(1, 30)]
        else:
            out[at:at] = rng.randbytes(rng.randrange(1, 10))
        out = out or bytearray(b"x")
    return bytes(out)


@pytest.mark.parametrize("n", [60, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, before it refuses or reads
def test_any_damage_is_refused_with_the_files_name_or_harmless(saved: tuple[str, Path], n: int) -> None:
    name, folder = saved
    unsign(folder / EXPORTS[name].files[0])
    rng, messages = random.Random(n), []
    for _ in range(n):
        path = folder / rng.choice(EXPORTS[name].files)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        try:
            EXPORTS[name].load(folder)
        except TrainError as error:
            messages.append(str(error))
        path.write_bytes(whole)
    assert len(messages) > n / 2
    assert all(str(folder) in message for message in messages)


# --- interruptions ----------------------------------------------------------------------------------------------------


def dying_after(renames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a save be killed once it has renamed so many files."""
    rename, done = os.rename, []

    def dying(source: str, target: str) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        rename(source, target)

    monkeypatch.setattr(atomic.os, "rename", dying)


@pytest.mark.parametrize("name", FORMATS)
def test_the_configuration_completes_a_new_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        EXPORTS[name].save(planted_sae("topk"), tmp_path)
    configuration, weights = EXPORTS[name].files
    assert (tmp_path / weights).is_file()
    with pytest.raises(TrainError, match=f"{configuration}: No such file"):
        EXPORTS[name].load(tmp_path)


@pytest.mark.parametrize("survives", [0, 1])
def test_a_save_that_dies_leaves_the_old_sae_or_is_refused(
    saved: tuple[str, Path], survives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first rename the old SAE is whole; killed between the two, the pair is told apart."""
    name, folder = saved
    dying_after(survives, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        EXPORTS[name].save(planted_sae("topk", seed=1), folder)
    monkeypatch.undo()
    if survives:
        with pytest.raises(TrainError, match="a save was interrupted"):
            EXPORTS[name].load(folder)
    else:
        same_function(planted_sae("topk"), EXPORTS[name].load(folder), rows())
    EXPORTS[name].save(planted_sae("topk", seed=1), folder)
    same_function(planted_sae("topk", seed=1), EXPORTS[name].load(folder), rows())


def test_a_full_disk_is_an_error_that_leaves_no_litter(
    saved: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_all", full)
    with pytest.raises(TrainError, match="No space left on device while writing: check the disk"):
        EXPORTS[name].save(planted_sae("topk", seed=1), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
