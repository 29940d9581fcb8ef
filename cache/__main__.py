"""`python -m cache info|verify|repack|export|du PATH`: look into a cache, check it, convert it."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

import cache
from cache import describe, export, repack, verify
from cache.codecs import CODECS
from cache.errors import CacheError
from cache.remote import folder_at


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 good, 1 `verify` found damage, 2 the request could not be met."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (CacheError, FileNotFoundError, PermissionError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing is lost: run the same command again to go on\n")
        return 130


def _info(arguments: argparse.Namespace) -> int:
    reader = cache.open(arguments.path, follow=True)
    print(json.dumps(describe.summary(reader), indent=2) if arguments.json else describe.page(reader))
    return 0


def _du(arguments: argparse.Namespace) -> int:
    reader = cache.open(arguments.path, follow=True)
    sizes = describe.usage(reader)
    if arguments.json:
        print(json.dumps(sizes, indent=2))
        return 0
    tokens = sum(len(reader.shard_range(shard)) for shard in reader.shards) * reader.meta.context
    for name, nbytes in [*sorted(sizes.items(), key=lambda item: -item[1]), ("total", sum(sizes.values()))]:
        print(f"{describe.readable(nbytes):>12}  {nbytes / max(tokens, 1):>10,.2f} bytes/token  {name}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    check = verify.Verification(folder_at(arguments.path))
    with tqdm(unit="B", unit_scale=True, desc="verify", disable=None) as bar:
        findings = check.run(bar.update, lambda total: bar.reset(total))
    for finding in findings:
        print(finding)
    if not findings:
        print(f"{arguments.path}: every byte is as it should be")
        return 0
    print(f"{arguments.path}: {len(findings)} findings", file=sys.stderr)
    if arguments.drop_damaged and "://" in arguments.path:
        raise CacheError(f"{arguments.path} is remote: only a local cache can be mended; fetch it first")
    if arguments.drop_damaged:
        dropped = verify.drop_damaged(Path(arguments.path), findings)
        print(f"dropped shards {dropped}: the harvest that made this cache will write them again", file=sys.stderr)
    return 1


def _repack(arguments: argparse.Namespace) -> int:
    reader = cache.open(arguments.path)
    shard_sequences = arguments.shard_sequences or reader.meta.shard_sequences
    total = reader.n_sequences * reader.meta.sequence_bytes * len(reader.layers)
    with tqdm(total=total, unit="B", unit_scale=True, desc="repack", disable=None) as bar:
        losses = repack.repack(
            reader, arguments.to, codec=arguments.codec, shard_sequences=shard_sequences, progress=bar.update
        )
    sizes = [sum(describe.usage(one).values()) for one in (reader, cache.open(arguments.to))]
    print(f"{arguments.to}: {describe.readable(sizes[1])}, {sizes[0] / sizes[1]:.3f}× smaller than {arguments.path}")
    for name, fvu in losses.items():
        print(f"{name} {fvu:.3e} (fraction of variance that 8-bit rows lose; an SAE's own is 0.1 to 0.3)")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    reader = cache.open(arguments.path)
    start, stop = arguments.sequences or (0, reader.n_sequences)
    layer = reader.layers[0] if arguments.layer is None and len(reader.layers) == 1 else arguments.layer
    if layer is None:
        raise CacheError(f"--layer must name one of {', '.join(map(str, reader.layers))}")
    total = (min(stop, reader.n_sequences) - start) * reader.meta.sequence_bytes
    with tqdm(total=total, unit="B", unit_scale=True, desc="export", disable=None) as bar:
        export.export(reader, layer, arguments.to, start=start, stop=stop, dtype=arguments.dtype, progress=bar.update)
    size = describe.readable(Path(arguments.to).stat().st_size)
    print(f"{arguments.to}: layer {layer}, sequences {start}:{stop}, {size}")
    return 0


def _sequences(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        return int(first), int(last)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted FIRST:LAST like 0:1000, got {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cache",
        description="Look into an activation cache, check it, convert it. The format is described in cache/FORMAT.md.",
        epilog="Exit codes: 0 good; 1 verify found damage; 2 the request could not be met (one line says why).",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        one.add_argument("path", help="folder (or URL) of the cache")
        one.set_defaults(run=run)
        return one

    info = command(
        "info", _info, "say what is in a cache: model, text, layers, tokens, size, norms; also of an unfinished one"
    )
    info.add_argument("--json", action="store_true", help="the same as JSON")
    du = command("du", _du, "list the bytes on disk of every array")
    du.add_argument("--json", action="store_true", help="the same as JSON")
    check = command(
        "verify", _verify, "check every byte: flipped bits, torn, missing or extra files, NaN rows, edited metadata"
    )
    check.add_argument(
        "--drop-damaged",
        action="store_true",
        help="take damaged shards out of the manifest: the next harvest writes them anew",
    )
    pack = command(
        "repack", _repack, "write a cache anew with another shard size or codec; a killed run goes on where it stopped"
    )
    pack.add_argument("to", help="folder of the new cache")
    pack.add_argument(
        "--codec", default="raw", choices=list(CODECS), help="raw can be memory-mapped (default: %(default)s)"
    )
    pack.add_argument("--shard-sequences", type=int, help="sequences a shard (default: as it is)")
    out = command("export", _export, "write one layer to a .npy or .safetensors file")
    out.add_argument("to", help="file to write, ending in .npy or .safetensors")
    out.add_argument("--layer", type=int, help="which layer (default: the only one)")
    out.add_argument("--sequences", type=_sequences, metavar="FIRST:LAST", help="a range of sequences (default: all)")
    out.add_argument(
        "--dtype", default="float32", choices=list(export.DTYPES), help="of a .npy file (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
