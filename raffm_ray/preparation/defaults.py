"""Settings that the user leaves open: what suits a new model, a pretrained one, and a head alone; and how data without classes is divided."""

from collections.abc import Set

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.updates.row import OWN
from raffm_ray.models.adapters.lora import RANK
from raffm_ray.models.architecture import Architecture
from raffm_ray.settings.experiment import Experiment
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS
from raffm_ray.subnetworks.costs import costs_of

REFERENCE_WIDTH = 768
"""Width of the models that the rates of pretrained ones are known for: BERT and ViT of base size."""


NEW_MODEL_EPOCHS, WARMUP_ROUNDS = 100, 2


ADAPTERS = 10.0
"""How much larger the best rate of adapters is than that of the whole model (Schulman and Thinking Machines 2025, LoRA without regret)."""
RANKS_ALONE = {RANK: 1}
"""What budgets cut of a model with adapters."""
ANSWERED_BYTES = 1 << 28
"""What the outputs of the examples that are evaluated at once take, at most: a language model answers with a number for every word at
every position, and its loss holds them three times."""


def learning_rate(optimizer: str, width: int, pretrained: bool, head_alone: bool, adapters: bool = False) -> float:
    """The learning rate that is taken where none is set.

    A pretrained model's is that of width 768, times 768 / `width`, at most a new model's: with Adam the best rate falls as the width
    grows (Yang et al. 2022, arXiv 2203.03466, table 3). That of adapters is ten times as large. Other optimizers' fall alike, as a rule of thumb. Raises UserError for an optimizer that names none.
    """
    rates = look_up(OPTIMIZERS, optimizer, "local.optimizer").rates
    if rates is None:
        raise UserError(f"local.learning_rate: is required: the optimizer {optimizer!r} names no rates of its own")
    if not pretrained:
        return rates.new
    of_all = rates.pretrained * (ADAPTERS if adapters else 1.0) * REFERENCE_WIDTH / width
    return rates.head if head_alone else min(rates.new, of_all)


def with_defaults(experiment: Experiment, architecture: Architecture, new: Set[str], classes: bool) -> Experiment:
    """The experiment with a value for every setting of training that it leaves open, and for how the data is divided.

    `architecture`: of its model; `new`: names of the parameters that are freshly drawn although the model is pretrained;
    `classes`: whether the data has any.
    """
    local, pretrain = experiment.local, experiment.model.pretrain
    known, layout = experiment.model.pretrained is not None, architecture.layout
    width = max((axis.size for name, axis in layout.axes.items() if name == "residual"), default=REFERENCE_WIDTH)
    trained = {name for name, one in layout.parameters.items() if not one.frozen}

    adapters = experiment.model.adapters is not None

    def rate(optimizer: str) -> float:
        return learning_rate(optimizer, width, known, head_alone=trained <= new, adapters=adapters)

    chosen = {
        "learning_rate": local.learning_rate or rate(local.optimizer),
        "label_skew": _label_skew(experiment, known, classes),
        "warmup_rounds": _or(local.warmup_rounds, WARMUP_ROUNDS if known else 0),
    }
    before = {
        "epochs": _or(pretrain.epochs, 0 if known else NEW_MODEL_EPOCHS),
        "head_epochs": ("auto" if new & trained else 0) if pretrain.head_epochs is None else pretrain.head_epochs,
        "learning_rate": pretrain.learning_rate or rate("adamw"),
    }
    model = experiment.model.model_copy(update={"pretrain": pretrain.model_copy(update=before)})
    partition = experiment.clients.partition or ("dirichlet_by_class" if classes else "iid")
    clients = experiment.clients.model_copy(update={"partition": partition})
    cutting = experiment.extraction
    if adapters and "steps" not in cutting.model_fields_set:
        cutting = cutting.model_copy(update={"steps": RANKS_ALONE})
    evaluation = experiment.evaluation
    if "batch_size" not in evaluation.model_fields_set:
        fitting = max(1, ANSWERED_BYTES // max(1, costs_of(architecture, Plan()).output_bytes))
        evaluation = evaluation.model_copy(update={"batch_size": min(evaluation.batch_size, fitting)})
    changed = {
        "local": local.model_copy(update=chosen),
        "model": model,
        "clients": clients,
        "extraction": cutting,
        "evaluation": evaluation,
    }
    return experiment.model_copy(update=changed)


def _label_skew(experiment: Experiment, known: bool, classes: bool) -> str:
    """A client's own model is for its own shares of the classes, so nothing is done about them unless it is asked for. Raises UserError where
    it is, and there are no classes."""
    asked = experiment.local.label_skew
    if asked not in (None, "ignore") and not classes:
        raise UserError(f"local.label_skew: must be ignore for task {experiment.task.name!r}, which has no classes, got {asked}")
    row = CLIENT_UPDATES.chosen(experiment.local.client_update, experiment.plugin_settings)
    own_models = bool(experiment.strategy.personal) or row.personal or OWN in row.keeps
    return asked or ("balanced_batches" if known and classes and not own_models else "ignore")


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
