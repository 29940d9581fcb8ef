"""SAELens' CacheActivationsRunner, timed; run by an interpreter that has sae-lens, given one JSON object of settings.

Prints one JSON object: the seconds of `run()` alone (neither the interpreter's start nor loading the model), the tokens
cached, and the version. Settings that are not the runner's defaults: the model in bfloat16 and without its key-value
cache; no shuffling afterwards; a buffer of the size given. With a hook on a block it stops after it by itself.
Activations are stored as float32, its default: Arrow has no bfloat16.
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from datasets import load_dataset
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    tokens_a_buffer = asked["buffer_sequences"] * asked["context"]
    config = CacheActivationsRunnerConfig(
        dataset_path=asked["data"],
        model_name=asked["model"],
        model_class_name="AutoModelForCausalLM",
        model_batch_size=asked["batch"],
        hook_name=f"model.layers.{asked['layer']}",
        d_in=asked["d_model"],
        training_tokens=asked["sequences"] * asked["context"],
        context_size=asked["context"],
        new_cached_activations_path=asked["out"],
        shuffle=False,
        device=asked["device"],
        buffer_size_gb=(tokens_a_buffer + 0.5) * asked["d_model"] * 4 / 1e9,  # float32
        model_from_pretrained_kwargs={
            "dtype": torch.bfloat16,
            "attn_implementation": "eager",
            "use_cache": False,
        },
    )
    data = load_dataset("json", data_files=asked["data"], split="train")
    runner = CacheActivationsRunner(config, override_dataset=data)
    runner.activations_store.get_activations(torch.zeros(asked["batch"], asked["context"], dtype=torch.long))
    begin = time.perf_counter()
    cached = runner.run()
    taken = time.perf_counter() - begin
    print(
        json.dumps(
            {"seconds": taken, "tokens": len(cached) * asked["context"], "version": f"SAELens {version('sae-lens')}"}
        )
    )


if __name__ == "__main__":
    main()
