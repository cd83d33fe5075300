"""The experiment: every setting, typed, frozen, validated."""

from typing import Any, Literal

from pydantic import Field, model_validator

from raffm_ray.settings.base import Settings
from raffm_ray.settings.execution import CheckpointSettings, PoolSettings


class TaskSettings(Settings):
    """Which data, and how it is split once, whatever the run's seed."""

    name: str = Field("digits", description="digits, or a task or kind of raffm_ray.data.tasks.TASKS")
    data: str | None = Field(None, description="local file or folder, or a name on the hub; $NAME is taken from the environment")
    subset: str | None = Field(None, description="the hub's name for a part of the data set")
    columns: dict[str, str] = Field({}, description="role -> column: text, text_pair, label, image, group and so on")
    train: str = Field("train", description="the split that public and clients' examples come from")
    held_out: str | float | None = Field(
        None, description="what evaluates: a split, or a fraction of `train`; default: the task's own split, or 0.25"
    )
    metric: str | None = Field(None, description="a metric of raffm_ray.data.metrics.METRICS; default: the task's own")
    max_length: int = Field(128, ge=8, description="tokens kept of a text; a batch is padded to its own longest")
    examples: int | None = Field(
        None, ge=1, description="public, validation and clients' examples together, at most; default: all"
    )
    public: int = Field(200, ge=1, description="examples that the server holds, for pretraining")
    validation: int = Field(
        0, ge=0, description="examples that nobody trains on, beside the held-out part: for evaluation.patience and keep_best"
    )
    split_seed: int = Field(0, ge=0, description="seed of the split")

    @model_validator(mode="after")
    def _fraction(self) -> "TaskSettings":
        if isinstance(self.held_out, float) and not 0 < self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} must be a fraction between 0 and 1, or the name of a split")
        return self


class PretrainSettings(Settings):
    """Training of the full model on the public part, before the federation; cached."""

    epochs: int = Field(100, ge=0)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.0, ge=0, lt=1, description="fraction of the steps in which the learning rate rises")


class ModelSettings(Settings):
    """The full model: a pretrained one, with a new head for the task, or one drawn from a configuration."""

    pretrained: str | None = Field(
        None, description="a local folder, a name on the hub, or all-MiniLM-L6-v2 of the package that carries it"
    )
    config: dict[str, Any] = Field(
        {}, description="a transformers configuration: `model_type` and its fields; beside `pretrained`: fields that are changed"
    )
    tokenizer: str | None = Field(
        None, description="a local folder, a packaged model or a name on the hub; default: the pretrained model's own"
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="patterns of names of parameters that nobody trains, such as *embeddings*: clients are given them, but compute no "
        "gradients for them and send nothing of them up",
    )
    pretrain: PretrainSettings = PretrainSettings()

    @model_validator(mode="after")
    def _source(self) -> "ModelSettings":
        if not self.pretrained and "model_type" not in self.config:
            raise ValueError("needs `pretrained`, or `config` with a `model_type`")
        return self


class ClientSettings(Settings):
    """Who there is and what they own."""

    count: int = Field(100, ge=1, description="registered clients")
    per_round: int = Field(10, ge=1, description="clients drawn for a round")
    partition: str = Field(
        "dirichlet_by_class",
        description="iid, dirichlet_by_class, dirichlet_by_client, shards, quantity_skew, k_shot, or natural: a client owns examples "
        "of one value of the column task.columns.group",
    )
    alpha: float = Field(
        0.5, ge=1e-4, description="concentration of the Dirichlet partitions and quantity_skew; smaller is more unequal"
    )
    shards: int = Field(2, ge=1, description="runs of examples sorted by class that a client gets, of the partition shards")
    shots: int = Field(1, ge=1, description="examples of every class that a client gets, of the partition k_shot")

    @model_validator(mode="after")
    def _enough(self) -> "ClientSettings":
        if self.per_round > self.count:
            raise ValueError(f"per_round {self.per_round} must not exceed count {self.count}")
        return self


class FleetSettings(Settings):
    """The devices. A class's budget is `memory_fraction` of its memory, unless `budgets` names one."""

    mix: str = Field("medium", description="a fleet of raffm_ray/devices/profiles.yaml, or of `profiles`")
    profiles: str | None = Field(None, description="a YAML file like raffm_ray/devices/profiles.yaml that adds devices and mixes")
    shares: dict[str, float] = Field({}, description="share of a device class; the mix is scaled to the rest")
    budgets: dict[str, dict[str, float]] = Field(
        {},
        description="device class -> {params|layer_params|bytes|training_flops|memory_bytes|macs|inference_bytes: limit}; <= 1 is a fraction",
    )
    memory_fraction: float = Field(0.25, gt=0, le=1, description="part of a device's memory that training may use")
    correlation: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="rank correlation between a client's data and its device's strength; 1: most examples, strongest",
    )
    correlated_with: Literal["examples", "classes"] = Field(
        "examples", description="classes: at 1, the lower the number of a client's most frequent class, the stronger its device"
    )


class SalienceSettings(Settings):
    """How parameters are ranked, and when."""

    metric: str = Field("outputs", description="a metric of raffm_ray.subnetworks.salience.METRICS")
    source: Literal["clients", "public"] = Field(
        "clients", description="who calibrates: clients that hold the full model, or the server on its public part"
    )
    every: int = Field(10, ge=1, description="rounds between rankings")
    until: float = Field(
        0.5,
        ge=0,
        le=1,
        description="fraction of the rounds after which the ranking stays, so that what it chose can sort_late_updates",
    )
    clients: int = Field(8, ge=1, description="clients that calibrate the first ranking, before round 1")
    examples: int = Field(64, ge=1, description="examples that a client calibrates on at most")
    rotation: Literal["none", "weights", "calibrated"] = Field(
        "none", description="bring heads into their SVD basis before round 1; calibrated: on public examples"
    )
    rotation_examples: int = Field(64, ge=1, description="public examples that calibrate the rotation")


class ExtractionSettings(Settings):
    """How a budget becomes a plan."""

    kind: Literal["ranked_list", "common_rate"] = "ranked_list"
    steps: dict[str, int] = Field(
        {"groups": 1, "heads": 1, "qk": 4, "vo": 4, "ffn": 16, "residual": 16},
        description="units cut together, by kind of axis; a kind left out is never cut, one that the model lacks is not missed",
    )
    floors: dict[str, float] = Field({"residual": 0.5}, description="fraction of an axis that always stays, by kind")


class StrategySettings(Settings):
    """Who trains which plan."""

    name: str = Field("raffm", description="a strategy of raffm_ray.server.strategies.STRATEGIES")
    prefix: Literal["default", "none", "smallest", "random", "one"] = Field(
        "default", description="smaller prefixes trained locally; default: the strategy's own"
    )
    aggregation: Literal["default", "coverage", "damped", "all_clients"] = Field(
        "default", description="divisor of the average; default: the strategy's own"
    )
    client_weight: Literal["default", "examples", "equal"] = Field(
        "default", description="what a client counts in the average; default: the strategy's own"
    )
    distill: float | None = Field(
        None, ge=0, le=1, description="how much of a prefix's loss is the client's own plan's soft outputs, instead of labels"
    )
    temperature: float = Field(1.0, gt=0, description="of the soft outputs")
    own: tuple[str, ...] = Field(
        (),
        description="parameters with a copy for every class's size: kinds of raffm_ray.subnetworks.size_specific.SIZE_SPECIFIC",
    )


class LocalSettings(Settings):
    """A client's training."""

    optimizer: Literal["adamw", "sgd", "momentum"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the learning rate, over rounds")
    weight_decay: float = Field(0.0, ge=0)
    batch_size: int = Field(16, ge=1)
    epochs: int = Field(1, ge=1)
    steps: int | None = Field(None, ge=1, description="steps instead of epochs")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient")
    proximal: float = Field(0.0, ge=0, description="FedProx's mu: pulls a client's parameters back to what it was given")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of products in forward passes, evaluation included; parameters, gradients and sums stay float32"
    )


class ServerSettings(Settings):
    """How the server moves the model towards a round's average."""

    optimizer: str = Field("sgd", description="an optimizer of raffm_ray.server.optimizers.SERVER_OPTIMIZERS")
    learning_rate: float | None = Field(None, gt=0, description="default: 1 for sgd and momentum, 0.001 for adam and yogi")
    beta1: float = Field(0.9, ge=0, lt=1, description="what momentum, adam and yogi keep of the changes so far")
    beta2: float = Field(0.99, ge=0, lt=1, description="what adam and yogi keep of the squared changes so far")
    tau: float = Field(1e-3, gt=0, description="adaptivity of adam and yogi: smaller adapts more")
    update_norm_bound: float | None = Field(None, gt=0, description="largest L2 norm of a client's change that is used")
    bad_updates: Literal["refuse", "stop"] = Field("refuse", description="of those beyond it or not finite; stop: the run ends")


class EvaluationSettings(Settings):
    """When the full model and every class's subnetwork are measured on the held-out part, and what the validation part decides."""

    every: int = Field(5, ge=1, description="rounds between evaluations; the last round is always evaluated")
    batch_size: int = Field(256, ge=1)
    patience: int | None = Field(
        None, ge=1, description="evaluations without improvement after which a run stops; default: never"
    )
    keep_best: bool = Field(False, description="whether the model of the best validated round is kept, instead of the last")
    watch: Literal["global", "worst", "mean"] = Field(
        "mean", description="what improves: the full model, the worst class's subnetwork, or the mean of full model and classes"
    )
    sizes: int = Field(
        7,
        ge=0,
        description="sizes between the smallest class and the full model, trained by nobody, measured at the end; 0: none",
    )


class ClockSettings(Settings):
    """Virtual time: who is available, how long a round waits, and what becomes of updates that come late."""

    deadline_seconds: float | None = Field(
        None, gt=0, description="simulated seconds after which a round ends; default: when nobody is left to wait for"
    )
    over_selection: float = Field(
        1.0, ge=1, description="clients drawn, as a multiple of clients.per_round; a round ends when per_round of them are back"
    )
    late: str = Field(
        "drop", description="what becomes of an update after its round's end: a policy of raffm_ray.server.clock.LATE_POLICIES"
    )
    late_rounds: int = Field(2, ge=1, description="accept: rounds that an update may be late")
    staleness: float = Field(0.5, ge=0, description="accept: a, where an update s rounds late has (1 + s)^-a of its weight")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability that a client drops out of a round, at any time in it")
    availability: str = Field(
        "always",
        description="who is awake when: a model of raffm_ray.devices.availability.AVAILABILITY; who falls asleep drops out",
    )
    period_seconds: float = Field(86400.0, ge=1e-6, description="periodic: a day and a night")
    awake: float = Field(0.5, gt=0, le=1, description="periodic: fraction of the period in which a client is awake")
    mean_on_seconds: float = Field(3600.0, ge=1e-6, description="markov: how long a client is awake on average")
    mean_off_seconds: float = Field(3600.0, ge=1e-6, description="markov: how long it is asleep on average")
    trace: str | None = Field(
        None, description="trace: a Parquet file of client, start_seconds, end_seconds, sorted; it repeats after its latest end"
    )

    @model_validator(mode="after")
    def _file(self) -> "ClockSettings":
        if (self.availability == "trace") != (self.trace is not None):
            raise ValueError(f"trace is a file where availability is trace, and only there: availability {self.availability!r}")
        return self


class Experiment(Settings):
    """Everything that a run's result depends on."""

    name: str = Field("experiment", pattern=r"^[\w.-]+$", max_length=100)
    seed: int = Field(0, ge=0)
    rounds: int = Field(40, ge=1)
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
    baselines: tuple[str, ...] = Field((), description="strategies run beside, on the same rounds, for comparison")
