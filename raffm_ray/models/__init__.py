"""Transformer families: from a configuration to named axes, parameters and modules of any plan.

Open to other packages:

- `architecture`: the table `FAMILIES`, and building full models and subnetworks
- `model_config`: checks and reads `model.config`
- `foundation`: configuration and tokenizer of the full model
- `pretrained_weights`: its pretrained weights
- `adapters`: low-rank adapters beside projections
- `attention`: attention whose head sizes differ from the configuration's
- `attention_choice`: whether attention is fused or two products: a rule and its measurements
- `modules`: stock modules without weights, resized
- `first_position`: the last layer of a classifier that looks at one position
- `freezing`: parameters that nobody trains
- `hooks`: reads activations while a model runs
- `objectives`: losses and answers of each task head
- `writing`: answers in words, token by token
- `word_rows`: the rows of a table of words that a client's texts use
- `stacked_modules`: several clients' modules as one

Used inside only:

- `saved_activations`: what autograd keeps until the backward pass
- `families`: one file for each kind of transformer

Imports `basics`, `settings`, `axes`, `data`.

Start reading at `architecture`.
"""

__all__ = [
    "adapters",
    "architecture",
    "attention",
    "attention_choice",
    "first_position",
    "foundation",
    "freezing",
    "hooks",
    "model_config",
    "modules",
    "objectives",
    "pretrained_weights",
    "stacked_modules",
    "word_rows",
    "writing",
]
