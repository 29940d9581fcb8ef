"""Which exact model or data set a name means: a commit on the Hugging Face hub, or the content of a local folder.

Every answer is 40 hex digits, because a branch name would let two different caches share one description.
"""

import hashlib
from pathlib import Path
from typing import Final, NamedTuple

from harvest.errors import HarvestError, first_line

MINIATURE: Final = "miniature"
TIMEOUT_SECONDS: Final = 10.0
# What decides a local model's output. Pickled weights (.bin, .pt) are never read, so they are not part of its identity.
MODEL_SUFFIXES: Final = frozenset({".json", ".jinja", ".model", ".safetensors", ".txt"})


class Origin(NamedTuple):
    """Where a model is loaded from."""

    name: str
    """As the user gave it: a hub id, a folder or `miniature`."""
    location: str
    """What `from_pretrained` gets: a hub id or a local folder."""
    revision: str
    """40-hex commit; of a local folder the first 40 hex digits of a content hash."""
    local: bool
    """True when nothing has to be fetched."""


def resolve_model(name: str, revision: str | None = None) -> Origin:
    """Find the exact model behind a name, with one request to the hub and no retries.

    Without a network a copy in the local hub cache is used, if there is one.

    Raises:
        HarvestError: no such folder, or the hub cannot be reached and the model is not cached.
    """
    if name == MINIATURE:
        return Origin(name, str(_miniature_folder()), folder_revision(_miniature_folder()), local=True)
    path = Path(name).expanduser()
    if path.is_dir():
        return Origin(name, str(path), folder_revision(path), local=True)
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise HarvestError(f"model {name!r} is no folder and no hub id (owner/name): give one of the two")
    return _from_hub(name, revision)


def resolve_dataset(name: str, revision: str | None = None) -> str:
    """The 40-hex commit of a hub data set.

    Raises:
        HarvestError: the hub cannot be reached or does not show this data set.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT_SECONDS).sha)
    except Exception as error:
        remedies = "log in to the hub, give local .txt, .jsonl or .parquet files, or use DATASET=miniature"
        raise HarvestError(f"cannot read data set {name} from the hub ({first_line(error)}): {remedies}") from error


def folder_revision(folder: Path) -> str:
    """Content hash of a local model: sha256 over name, size and bytes of its files, sorted; first 40 hex digits.

    Files: configuration, weights and tokenizer, by `MODEL_SUFFIXES`, not in subfolders.

    Raises:
        HarvestError: the folder holds no `config.json`.
    """
    if not (folder / "config.json").is_file():
        raise HarvestError(f"{folder} holds no config.json: give a folder in Hugging Face format")
    total = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in MODEL_SUFFIXES and path.is_file()):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{file.name} {file.stat().st_size} {content}\n".encode())
    return total.hexdigest()[:40]


def content_revision(content: bytes) -> str:
    """40 hex digits of a sha256, for whatever has no commit."""
    return hashlib.sha256(content).hexdigest()[:40]


def unavailable(name: str, error: BaseException) -> HarvestError:
    """The one line for a model that cannot be had, with its three remedies."""
    remedies = (
        "log in (`hf auth login`) and accept its licence on the hub, or give a local folder, or use MODEL=miniature"
    )
    return HarvestError(f"cannot load model {name} ({first_line(error)}): {remedies}")


def _from_hub(name: str, revision: str | None) -> Origin:
    """Ask the hub for the commit; offline, look for a cached copy."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        commit = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_SECONDS).sha
        return Origin(name, name, str(commit), local=False)
    except HFValidationError as error:
        raise unavailable(name, error) from error
    except Exception as error:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(config, str):
            raise unavailable(name, error) from error
        snapshot = Path(config).parent  # .../snapshots/<commit>
        return Origin(name, str(snapshot), snapshot.name, local=True)


def _miniature_folder() -> Path:
    from harvest.miniature import MODEL_PATH

    return Path(MODEL_PATH)
