"""The sparse fast path of SAE training: select latents, encode and decode them with gradients that touch only those.

    selected = select_top_k(x_BD, w_enc_DF, b_enc_F, k=64)
    values_n = encode(x_BD, w_enc_DF, b_enc_F, selected)
    x_hat_BD = decode(values_n, selected.features_n, selected.offsets, w_dec_FD, b_dec_D)

On the CPU the work is done by numba's compiled kernels, on CUDA by Triton's, or by dense products where the codes are
dense enough; on other devices, for other types than float32, and where a compiler is missing, by their plain twins.

`W_enc` is [D, F] as everywhere, but fastest when a latent's weights lie together: `torch.empty(F, D).T`; its gradient
has that layout too. An encoder that subtracts `b_dec` first gives `x − b_dec.detach()` here, and `b_dec`'s gradient,
−W_enc ∂b_enc, to its bias (`SAE.encoder_bias`): one product with a vector instead of a gradient for every input row.
"""

from train.kernels.adam import Adam
from train.kernels.sparse import (
    Selected,
    decode,
    encode,
    gather_dot,
    gather_sum,
    select_top_k,
    select_top_n,
    sparse_from_dense,
)

__all__ = [
    "Adam",
    "Selected",
    "decode",
    "encode",
    "gather_dot",
    "gather_sum",
    "select_top_k",
    "select_top_n",
    "sparse_from_dense",
]
