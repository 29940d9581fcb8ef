"""Linear probes: is a factor readable, linearly, from the mean of a block's output over a text?

As in SAEBench's sparse probing: output of one block, mean over the text's own tokens (no BOS, no padding), then
multinomial logistic regression with an L2 penalty, trained and tested on different texts.
Shapes: B texts, T positions, D model width, C classes.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harvest.miniature.labelled import LabelledText

BATCH = 64
MAX_TOKENS = 128


def pooled_residuals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[LabelledText], layer: int
) -> torch.Tensor:
    """Mean output of block `layer` over each text's own tokens, fp32 [B, D]."""
    seen: list[torch.Tensor] = []
    block = model.get_submodule(f"model.layers.{layer}")
    handle = block.register_forward_hook(lambda _module, _inputs, output: seen.append(_hidden(output)))
    out = []
    try:
        with torch.no_grad():
            for start in range(0, len(texts), BATCH):
                batch = tokenizer(
                    [text.text for text in texts[start : start + BATCH]],
                    padding=True,
                    truncation=True,
                    max_length=MAX_TOKENS,
                    return_tensors="pt",
                )
                model(**batch, use_cache=False)
                own_BT = batch["attention_mask"].bool() & (batch["input_ids"] != tokenizer.bos_token_id)
                resid_BTD = seen.pop().float() * own_BT[..., None]
                out.append(resid_BTD.sum(dim=1) / own_BT.sum(dim=1, keepdim=True))
    finally:
        handle.remove()
    return torch.cat(out)


def probe_accuracy(
    train_BD: torch.Tensor, train_labels: Sequence[str], test_BD: torch.Tensor, test_labels: Sequence[str]
) -> float:
    """Test accuracy of a logistic regression (standardised inputs, L2 penalty 1e-3, full-batch L-BFGS)."""
    names = sorted(set(train_labels))
    y_B = torch.tensor([names.index(label) for label in train_labels])
    mean_D, std_D = train_BD.mean(dim=0), train_BD.std(dim=0) + 1e-6
    x_BD = (train_BD - mean_D) / std_D
    weight_DC = torch.zeros(x_BD.shape[1], len(names), requires_grad=True)
    bias_C = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_DC, bias_C], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x_BD @ weight_DC + bias_C, y_B) + 1e-3 * weight_DC.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        chosen_B = ((test_BD - mean_D) / std_D @ weight_DC + bias_C).argmax(dim=1)
    right = sum(names[int(c)] == label for c, label in zip(chosen_B, test_labels, strict=True))
    return right / len(test_labels)


def _hidden(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]
