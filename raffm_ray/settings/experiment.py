"""The experiment: every setting, typed, frozen, validated."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raffm_ray.basics.registry import own_settings
from raffm_ray.settings.base import FILE, Settings, changed_values
from raffm_ray.settings.clients import ClientSettings
from raffm_ray.settings.compression import ExtractionSettings, FleetSettings, SalienceSettings
from raffm_ray.settings.evaluation import EvaluationSettings
from raffm_ray.settings.execution import CheckpointSettings, PoolSettings
from raffm_ray.settings.plugins import PluginSettings
from raffm_ray.settings.strategy import BaselineSettings, StrategySettings
from raffm_ray.settings.task_and_model import ModelSettings, TaskSettings


class LocalSettings(Settings):
    """A client's training."""

    optimizer: str = Field(
        default="adamw", description="optimizer of a client: one of raffm_ray.subnetworks.client_optimizers.OPTIMIZERS"
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="learning rate of a client; default: by the optimizer and the model, see docs/how_to/training_options.md; the run's config.yaml says which",
    )
    client_update: str = Field(
        default="standard",
        description="a client's training in a round as a whole: one of raffm_ray.clients.client_updates.CLIENT_UPDATES",
    )
    schedule: Literal["constant", "cosine"] = Field(default="constant", description="how the learning rate changes over rounds")
    warmup_rounds: int | None = Field(
        default=None,
        ge=0,
        description="rounds in which the learning rate rises linearly to what `schedule` says; 0: it begins there; default: 2 for a pretrained model, else 0",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of a client's optimizer; none for biases and norms")
    batch_size: int = Field(default=16, ge=1, description="examples of a training step")
    batches: Literal["shuffled", "by_length"] = Field(
        default="shuffled", description="`by_length`: texts of like length stand together in a step, so that less is padded"
    )
    epochs: int = Field(default=1, ge=1, description="passes over a client's examples in a round")
    steps: int | None = Field(
        default=None, ge=1, description="training steps in a round, instead of `epochs`; default: by `epochs`"
    )
    clip: float | None = Field(
        default=1.0, gt=0, description="largest L2 norm of the gradient; a longer one is scaled down; none: no limit"
    )
    proximal: float = Field(
        default=0.0,
        ge=0,
        description="mu of FedProx: how strongly a client's parameters are pulled back to those that it received; also alpha of `feddyn`, lambda of `ditto`, `pfedme` and `rank_pruning`; 0: not at all",
    )
    label_skew: Literal["ignore", "balanced_batches", "logit_adjustment"] | None = Field(
        default=None,
        description="what is done about a client whose shares of the classes are not all clients': nothing (`ignore`); `balanced_batches`: its batches have all clients' shares of "
        "the classes that it owns; `logit_adjustment`: its loss is corrected for the difference; see docs/how_to/label_skew.md; default: `balanced_batches` for a pretrained model and classes, else `ignore`",
    )
    crop_padding: int = Field(
        default=0,
        ge=0,
        description="pixels by which a client's images are padded on every side before a random part of their size is cut out, anew in every step; 0: not at all",
    )
    flip: bool = Field(
        default=False, description="whether a client's images are mirrored left to right, each with probability 1/2 in every step"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="precision of matrix products, also in evaluation; parameters, their gradients, the optimizer and all sums over clients are always float32",
    )
    attention: Literal["auto", "sdpa", "eager"] = Field(
        default="auto",
        description="how attention is computed: `sdpa` by PyTorch's fused kernels, `eager` by two matrix products and a softmax; `auto`: by a rule over "
        "device, precision, dropout and positions (raffm_ray.models.attention_choice)",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="whether training keeps only what every block of a stack reads, and computes the block again for its gradients",
    )


class ServerSettings(Settings):
    """How the server moves the model towards a round's average."""

    optimizer: str = Field(
        default="sgd",
        description="how the average of the updates is applied: an optimizer of raffm_ray.server.optimizers.SERVER_OPTIMIZERS",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="learning rate of the server; default: 1 for `sgd`, `momentum` and `feddyn`, 0.001 for `adam` and `yogi`",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment, for `momentum`, `adam` and `yogi`")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="decay of the second moment, for `adam` and `yogi`")
    tau: float = Field(default=1e-3, gt=0, description="adaptivity of `adam` and `yogi`; a smaller value adapts more")
    update_norm_bound: float | None = Field(
        default=None, gt=0, description="largest L2 norm of a client's update that is accepted; default: no limit"
    )
    fair_exponent: float = Field(
        default=0.0,
        ge=0,
        description="q of q-FedAvg: clients with larger losses count more; 0: as in FedAvg; see docs/how_to/choose_clients.md",
    )
    agnostic_rate: float = Field(
        default=0.0,
        ge=0,
        description="step size by which device types with larger losses come to count more (agnostic federated learning); 0: they never do",
    )
    bad_updates: Literal["refuse", "stop"] = Field(
        default="refuse",
        description="what happens to updates that are longer than that or not finite: `refuse` does not use them, `stop` ends the run",
    )


class ClockSettings(Settings):
    """Virtual time: who is available, how long a round waits, and what becomes of updates that come late."""

    deadline_seconds: float | None = Field(
        default=None, gt=0, description="simulated seconds after which a round ends; default: it ends when all clients are done"
    )
    over_selection: float = Field(
        default=1.0,
        ge=1,
        description="clients drawn for a round, as a multiple of `clients.per_round`; the round ends when `clients.per_round` of them have sent their updates",
    )
    late: str = Field(
        default="drop",
        description="what happens to an update that arrives after the end of its round: a policy of raffm_ray.server.clock.LATE_POLICIES",
    )
    late_rounds: int = Field(
        default=2, ge=1, description="for the policy `accept`: the number of rounds that an update may be late"
    )
    staleness: float = Field(
        default=0.5,
        ge=0,
        description="for the policy `accept`: the exponent a; an update that is s rounds late has (1 + s)^-a of its weight",
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="probability that a client drops out of a round, at a random time in it"
    )
    availability: str = Field(
        default="always",
        description="when clients are awake: a model of raffm_ray.devices.availability.AVAILABILITY; a client that falls asleep drops out",
    )
    period_seconds: float = Field(
        default=86400.0, ge=1e-6, description="for `periodic`: length of the period in simulated seconds"
    )
    awake: float = Field(default=0.5, gt=0, le=1, description="for `periodic`: fraction of the period in which a client is awake")
    mean_on_seconds: float = Field(
        default=3600.0, ge=1e-6, description="for `markov`: mean time that a client is awake, in simulated seconds"
    )
    mean_off_seconds: float = Field(
        default=3600.0, ge=1e-6, description="for `markov`: mean time that a client is asleep, in simulated seconds"
    )
    trace: str | None = Field(
        default=None,
        json_schema_extra=FILE,
        description="for `trace`: a Parquet file with the columns `client`, `start_seconds` and `end_seconds`, sorted; it repeats after its latest end",
    )

    @model_validator(mode="after")
    def _file(self) -> "ClockSettings":
        if (self.availability == "trace") != (self.trace is not None):
            raise ValueError(f"trace is a file where availability is trace, and only there: availability {self.availability!r}")
        return self


class Experiment(Settings):
    """Everything that a run's result depends on.

    >>> import raffm_ray
    >>> experiment = raffm_ray.Experiment(
    ...     model=raffm_ray.ModelSettings(pretrained="all-MiniLM-L6-v2"),
    ...     task=raffm_ray.TaskSettings(name="text_classification", data="reviews.csv"),
    ...     clients=raffm_ray.ClientSettings(count=20, per_round=5),
    ... )
    >>> experiment.rounds
    40
    """

    name: str = Field(
        default="experiment", pattern=r"^[\w.-]+$", max_length=100, description="name in folders, tables and pictures"
    )
    seed: int = Field(
        default=0, ge=0, description="seed of everything that is random, except what `task.split_seed` and `model.seed` name"
    )
    rounds: int = Field(default=40, ge=1, description="rounds of federated training")
    plugins: tuple[PluginSettings, ...] = Field(
        default=(),
        json_schema_extra=FILE,
        description="Python files and modules that add strategies, metrics and more to the tables, by their paths and names; see docs/how_to/add_your_own.md",
    )
    plugin_settings: dict[str, dict[str, Any]] = Field(
        default={},
        validate_default=True,
        description="mapping from a name that a plug-in declares to the plug-in's own settings",
    )
    task: TaskSettings = TaskSettings()
    model: ModelSettings
    clients: ClientSettings = ClientSettings()
    fleet: FleetSettings = FleetSettings()
    strategy: StrategySettings = StrategySettings()
    salience: SalienceSettings = SalienceSettings()
    extraction: ExtractionSettings = ExtractionSettings()
    local: LocalSettings = LocalSettings()
    server: ServerSettings = ServerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    clock: ClockSettings = ClockSettings()
    pool: PoolSettings = PoolSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    loggers: tuple[str, ...] = Field(
        default=("tensorboard",),
        description="who is told of the run while it works: loggers of raffm_ray.runs.loggers.table.LOGGERS, such as `mlflow`; they change no result",
    )
    baselines: tuple[BaselineSettings, ...] = Field(
        default=(),
        description="strategies to compare with, on the same data, fleet, seed and rounds: names, or mappings of a `name`, a `label` and settings of `strategy`, such as "
        "{name: raffm, label: no prefixes, prefix: none}; `local` holds those of its local training that are not the experiment's",
    )

    @field_validator("plugin_settings")
    @classmethod
    def _own(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return own_settings(given)

    @field_validator("loggers")
    @classmethod
    def _once(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(given)) < len(given):
            raise ValueError("every logger once")
        return given

    def with_settings(self, **changes: Any) -> "Experiment":
        """The same experiment with other settings, checked anew. A group of settings may be given as a mapping of those that change.

        >>> import raffm_ray
        >>> short = raffm_ray.Experiment(model=raffm_ray.ModelSettings(config={"model_type": "vit"}))
        >>> short.with_settings(rounds=100, local={"epochs": 2}).local.batch_size
        16
        """
        return Experiment.model_validate(changed_values(self, changes))

    @property
    def model_seed(self) -> int:
        """Seed of the starting model: `model.seed`, else the run's."""
        return self.seed if self.model.seed is None else self.model.seed
