"""Settings of the data, and of the model that is trained on it."""

import os
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raffm_ray.settings.adapters import AdapterSettings
from raffm_ray.settings.base import DATA, MODEL, ClassWeights, Settings
from raffm_ray.settings.model_objects import kept_model


class TaskSettings(Settings):
    """Which data, and how it is split once, whatever the run's seed."""

    name: str = Field(default="digits", description="`digits`, or a task or a kind of task of raffm_ray.data.tasks.TASKS")
    data: str | None = Field(
        default=None,
        json_schema_extra=DATA,
        description="local file or folder, or a name on the Hugging Face hub; $NAME is replaced by the environment variable",
    )
    subset: str | None = Field(default=None, description="name of a configuration of the data set on the hub")
    revision: str | None = Field(
        default=None,
        description="branch, tag or commit of a data set on the hub; the commit that it is at is written into the run's config.yaml",
    )
    columns: dict[str, str] = Field(
        default={},
        description="mapping from a role to the column that has it; roles are `text`, `text_pair`, `label`, `image`, `group`, `time` and others",
    )
    train: str = Field(default="train", description="split of the data set from which the examples of server and clients come")
    held_out: str | float | None = Field(
        default=None,
        description="held-out examples for evaluation: the name of a split, or a fraction of `train`; default: the task's own split, or 0.25",
    )
    metric: str | None = Field(default=None, description="a metric of raffm_ray.data.metrics.METRICS; default: the task's own")
    objective: str | None = Field(
        default=None,
        description="loss, and what answers are read by: one of raffm_ray.models.objectives.OBJECTIVES; default: that of the task's head",
    )
    class_weights: ClassWeights = Field(
        default="none",
        description="what an example of a class counts in the training loss: `balanced`, every class counts the same in all clients' examples "
        "together; or a mapping from names of classes (or their numbers) to weights, 1 for the others",
    )
    no_answer_threshold: float = Field(
        default=0.0,
        description="question answering with questions that have no answer: by how much no answer must outscore the best one",
    )
    max_length: int = Field(default=128, ge=8, description="most tokens of a text or block; a batch is padded to its longest")
    pack: bool = Field(
        default=True,
        description="language modelling: whether texts are joined, with an end-of-text token after each, and cut into blocks of `max_length` tokens, which are the "
        "examples; a block holds texts of one value of `task.columns.group`; false: every text is cut at `max_length`",
    )
    examples: int | None = Field(
        default=None,
        ge=1,
        description="most examples for the public part, the validation part and the clients together; default: all",
    )
    public: int = Field(default=200, ge=1, description="examples that the server holds, for example for pretraining")
    validation: int = Field(
        default=0,
        ge=0,
        description="examples for `evaluation.patience` and `evaluation.keep_best`, on which nobody trains; they are not part of the held-out examples",
    )
    split_seed: int = Field(
        default=0, ge=0, description="seed of the split into public, validation, held-out and clients' examples"
    )

    @model_validator(mode="after")
    def _fraction(self) -> "TaskSettings":
        if isinstance(self.held_out, float) and not 0 < self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} must be a fraction between 0 and 1, or the name of a split")
        return self


class PretrainSettings(Settings):
    """Training of the full model on the public part, before the federation; cached."""

    epochs: int | None = Field(
        default=None,
        ge=0,
        description="passes over the public examples in which the whole model is trained; default: 100 for a new model, 0 for a pretrained one",
    )
    head_epochs: Annotated[int, Field(ge=0)] | Literal["auto"] | None = Field(
        default=None,
        description="passes before these, in which only a task head is trained that is new on a pretrained model, with what stands between the "
        "last layer and it, such as a pooler; what the layers make of the examples is computed once; `auto`: as many, at most 100, as give the "
        "lowest loss in 5-fold cross-validation on the public examples; default: `auto`, 0 where no head is new",
    )
    head_learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="learning rate of AdamW in the passes of `head_epochs`; where these are a number it falls to 0 at their end",
    )
    batch_size: int = Field(default=32, ge=1, description="examples of a training step")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="largest learning rate of AdamW; it falls to 0 at the end; default: what `local.learning_rate` is by default with `adamw`",
    )
    weight_decay: float = Field(default=0.05, ge=0, description="weight decay of AdamW; none for biases and norms")
    warmup: float = Field(default=0.0, ge=0, lt=1, description="fraction of the steps in which the learning rate rises from 0")


class ModelSettings(Settings):
    """The full model: a pretrained one, with a new head for the task, or one drawn from a configuration."""

    pretrained: str | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="pretrained model: a local folder, a name on the hub, or `all-MiniLM-L6-v2` where its Python package is installed; default: none",
    )
    revision: str | None = Field(
        default=None,
        description="branch, tag or commit of a model on the hub; the commit that it is at is written into the run's config.yaml",
    )
    config: dict[str, Any] = Field(
        default={},
        description="configuration of transformers: `model_type` and its fields; together with `pretrained`, only the fields to change",
    )
    new_head: bool = Field(
        default=False,
        description="whether the task head is drawn anew although the pretrained model has one, such as one of other classes",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        description="seed of the weights that are drawn and of `pretrain`; a number gives runs of every seed the same starting model, as a "
        "checkpoint would; default: the run's seed",
    )
    tokenizer: str | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="tokenizer: a local folder, a packaged model or a name on the hub; default: the pretrained model's own",
    )
    freeze: tuple[str, ...] = Field(
        default=(),
        description="patterns of names of parameters that are not trained, such as *embeddings*; clients receive them, but compute no "
        "gradients for them and send nothing back for them",
    )
    adapters: AdapterSettings | None = Field(
        default=None,
        description="low-rank adapters that are trained in place of the model, which is frozen but for its task head; default: none",
    )
    frozen_precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="in which parameters that `freeze` names are kept and sent; bfloat16 takes half of the memory and bytes, and rounds them once",
    )
    pretrain: PretrainSettings = Field(default=PretrainSettings(), description="pretraining on the public examples")

    @field_validator("pretrained", "tokenizer", mode="before")
    @classmethod
    def _folder(cls, given: Any) -> Any:
        return os.fspath(given) if isinstance(given, os.PathLike) else given

    @model_validator(mode="after")
    def _source(self) -> "ModelSettings":
        if not self.pretrained and "model_type" not in self.config:
            raise ValueError("needs `pretrained`, or `config` with a `model_type`")
        return self

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None, **others: Any) -> "ModelSettings":
        """Settings of a model that was fitted in this process: a `PreTrainedModel` of transformers. `tokenizer`: of a model of texts;
        `others`: further settings.

        The model is saved in the folder `models` of the cache, which a run needs to go on. Raises UserError for what is no such model.

        >>> import raffm_ray
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> small = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=48, image_size=8, patch_size=4)
        >>> settings = raffm_ray.ModelSettings.of(ViTForImageClassification(small), new_head=True)
        >>> settings.new_head
        True
        """
        return cls(pretrained=kept_model(model, tokenizer), **others)
