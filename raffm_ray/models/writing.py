"""Answers in words, which a model writes token by token."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from raffm_ray.data.metrics import Writing


def write_greedily(answer: Callable[..., Any], inputs: Mapping[str, Tensor], writing: Writing) -> Tensor:
    """[batch, writing.most]: at each position the likeliest next token, -1 from the end of an answer on.

    `answer`: a batch's inputs by name -> output with `logits`; where it tells its encoder's states, they are computed once. Inputs of the decoder are
    left out.
    """
    source: dict[str, Any] = {name: values for name, values in inputs.items() if not name.startswith("decoder_")}
    count, device = len(source["input_ids"]), source["input_ids"].device
    shown = torch.full((count, 1), writing.first, device=device)
    found = torch.full((count, writing.most), -1, device=device)
    writes = torch.ones(count, dtype=torch.bool, device=device)
    for position in range(writing.most):
        output = answer(**source, decoder_input_ids=shown, decoder_attention_mask=torch.ones_like(shown))
        if (states := getattr(output, "encoder_last_hidden_state", None)) is not None:
            source = {"attention_mask": source["attention_mask"], "encoder_outputs": (states,)}
        tokens = output.logits[:, -1].argmax(-1)
        writes &= tokens != (-1 if writing.end is None else writing.end)
        if not bool(writes.any()):
            break
        found[:, position] = torch.where(writes, tokens, -1)
        shown = torch.cat([shown, tokens[:, None]], 1)
    return found
