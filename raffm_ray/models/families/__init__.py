"""One file for each kind of transformer: its axes, the dims of its parameters, what autograd keeps of it. A new family is one file here and its row in `models.architecture.FAMILIES`.

- `encoder`: BERT, RoBERTa, DistilBERT
- `vit`: ViT, DeiT
- `gpt2`: GPT-2
- `rope`: LLaMA, Qwen2, Qwen3, Mistral
- `t5`: T5, FLAN-T5
- `decoder`: what the decoders share
- `vocabulary`: the axis of the words that are looked up in a table

Start reading at `encoder`.
"""

__all__ = []
