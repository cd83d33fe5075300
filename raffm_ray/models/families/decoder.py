"""What decoders of text have in common: their task heads, and how many positions a text has."""

from transformers import PretrainedConfig

from raffm_ray.axes.layout import Parameter

HEADS = ("causal_language_modelling", "sequence_classification", "question_answering")


def head_parameters(config: PretrainedConfig, head: str, embeddings: str) -> dict[str, Parameter]:
    """The parameters of a task head; `embeddings`: the module that a tied output layer shares its weight with."""
    if head == "causal_language_modelling":
        owner = embeddings if config.tie_word_embeddings else "lm_head"
        return {f"{owner}.weight": Parameter(((), ("residual",)), matmul="tokens", module="lm_head")}
    if head == "question_answering":
        weight = Parameter(((), ("residual",)), matmul="tokens")
        return {"qa_outputs.weight": weight, "qa_outputs.bias": Parameter(((),))}
    return {"score.weight": Parameter(((), ("residual",)), matmul="tokens")}


def positions(config: PretrainedConfig, tokens: int | None, targets: int | None) -> dict[str, int]:
    """How many positions an example has: `tokens` of text, the longest that the model takes where it is not given."""
    return {"tokens": tokens or config.max_position_embeddings, "examples": 1}
