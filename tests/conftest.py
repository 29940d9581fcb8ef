"""What every test shares: one thread for torch, and no way to the network."""

import os
from importlib.util import find_spec

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers or datasets are imported: no test may wait for a hub

if find_spec("torch"):
    import torch

    torch.set_num_threads(1)
