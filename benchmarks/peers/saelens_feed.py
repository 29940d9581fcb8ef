"""SAELens' loader of cached activations, timed; run by an interpreter that has sae-lens, given one JSON object.

It writes a cache of random sequences in SAELens' own format, then reads numbers of batches from stdin, a line each, and
prints the seconds that each took. A first line says the version. Settings that are not the library's defaults: no LLM,
and no mixing (`activations_mixing_fraction=0`), which is its fastest.
"""

import json
import sys
import time
import warnings
from importlib.metadata import version

import numpy as np
import torch
from datasets import Array2D, Dataset, Features, concatenate_datasets
from sae_lens.training.activations_store import ActivationsStore

HOOK = "blocks.12.hook_resid_post"


def main() -> None:
    asked = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    torch.set_num_threads(asked["threads"])
    shape = (asked["context"], asked["d_model"])
    rng = np.random.default_rng(0)
    features = Features({HOOK: Array2D(shape=shape, dtype="float32")})
    parts = [
        Dataset.from_dict({HOOK: rng.standard_normal((64, *shape), dtype=np.float32)}, features=features)
        for _ in range(asked["sequences"] // 64)
    ]
    concatenate_datasets(parts).save_to_disk(asked["out"])
    store = ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=asked["context"],
        d_in=asked["d_model"],
        n_batches_in_buffer=max(20, -(-asked["batch"] // asked["context"])),
        total_training_tokens=10**9,
        store_batch_size_prompts=32,
        train_batch_size_tokens=asked["batch"],
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=asked["out"],
        activations_mixing_fraction=0.0,
    )
    print(f"SAELens {version('sae-lens')}", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            batch = next(store)
        taken = time.perf_counter() - begin
        if batch.shape != (asked["batch"], asked["d_model"]):
            raise SystemExit(f"wanted batches of {asked['batch']} rows, got {tuple(batch.shape)}")
        print(taken, flush=True)


if __name__ == "__main__":
    main()
