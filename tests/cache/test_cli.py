"""`python -m cache`: what people see, and the exit codes that scripts see."""

import json
from pathlib import Path

import numpy as np
import pytest

import cache
from cache.__main__ import main
from tests.cache.planted import D, N, T, make_bits, make_meta, make_rows, write


def test_info_tells_what_is_in_a_cache(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(small)]) == 0
    page = capsys.readouterr().out
    rows = make_rows()
    documents = len(np.unique(rows.document[rows.document >= 0]))
    for line in (
        "state        complete",
        "model        planted @ 012345678901 (bfloat16, eager)",
        "text         planted (train) @ 1",
        "layers       3, 5 (blocks.3.hook_resid_post …)",
        f"tokens       {N * T} = {N} sequences × {T} (pack)",
        f"documents    {documents}; {(rows.split == 1).sum()} sequences held out",
        f"d_model      {D}",
        "3 shards of 4 sequences, raw",
        "created      2026-01-02T03:04:05Z",
    ):
        assert line in page


def test_info_as_json_has_the_same_numbers(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(small), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sequences"], found["tokens"], found["layers"], found["complete"]) == (N, N * T, [3, 5], True)
    x = make_bits(seed=5)[make_rows().document >= 0]
    assert found["norms"]["5"]["rows"] == len(x) - N  # less one BOS a sequence
    assert found["bytes"] == sum(p.stat().st_size for p in small.rglob("*") if p.is_file())


def test_info_of_an_unfinished_cache_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "c", make_meta(), {3: make_bits()}, make_rows(), finish=False)
    assert main(["info", str(tmp_path / "c")]) == 0
    assert f"incomplete: {N} of {N} sequences" in capsys.readouterr().out


def test_du_adds_up(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["du", str(small), "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["layer_3"] == N * T * D * 2 + 3 * (16 * 4 + 4)
    assert sum(sizes.values()) == sum(p.stat().st_size for p in small.rglob("*") if p.is_file())
    assert main(["du", str(small)]) == 0
    assert "total" in capsys.readouterr().out


def test_verify_exits_1_with_the_list(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(small)]) == 0
    assert "every byte is as it should be" in capsys.readouterr().out
    (small / "layer_5" / "c" / "2" / "0" / "0").unlink()
    assert main(["verify", str(small)]) == 1
    assert "layer_5/c/2/0/0: is missing" in capsys.readouterr().out
    assert main(["verify", str(small), "--drop-damaged"]) == 1
    assert "dropped shards [2]" in capsys.readouterr().err
    with pytest.raises(cache.CacheError, match="2 of 3 shards"):
        cache.open(str(small))


def test_repack_and_export_do_what_they_say(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repack", str(small), str(tmp_path / "z"), "--codec", "int8", "--shard-sequences", "2"]) == 0
    assert "layer_3/int8_fvu" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "z"), str(tmp_path / "x.npy"), "--layer", "5", "--sequences", "2:5"]) == 0
    assert np.load(tmp_path / "x.npy").shape == (3, T, D)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["info", "nowhere"], "nowhere is no cache (it has no zarr.json): check the path, or make one with"),
        (["repack", "SMALL", "SMALL", "--codec", "zstd"], "is the cache itself"),
        (["export", "SMALL", "x.npy"], "--layer must name one of 3, 5"),
        (["export", "SMALL", "x.npy", "--layer", "9"], "has no layer 9, only 3, 5"),
        (["export", "SMALL", "x.csv", "--layer", "3"], "must end in .npy or .safetensors"),
    ],
)
def test_a_bad_request_gets_one_line_and_exit_code_2(
    small: Path, capsys: pytest.CaptureFixture[str], command: list[str], answer: str
) -> None:
    assert main([str(small) if word == "SMALL" else word for word in command]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert answer in line
