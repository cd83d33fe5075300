"""The experiment: typed, frozen, validated; a YAML file gives the base, flags override it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raffm_ray.errors import UserError, near_miss


class Settings(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskSettings(Settings):
    """Which data, and how it is split once, whatever the run's seed."""

    name: str = Field("digits", description="digits, or a task or kind of raffm_ray.data.TASKS")
    data: str | None = Field(None, description="local file or folder, or a name on the hub; $NAME is taken from the environment")
    subset: str | None = Field(None, description="the hub's name for a part of the data set")
    columns: dict[str, str] = Field({}, description="role -> column: text, text_pair, label, image, group and so on")
    train: str = Field("train", description="the split that public and clients' examples come from")
    held_out: str | float | None = Field(
        None, description="what evaluates: a split, or a fraction of `train`; default: the task's own split, or 0.25"
    )
    metric: str | None = Field(None, description="a metric of raffm_ray.metrics.METRICS; default: the task's own")
    max_length: int = Field(128, ge=8, description="tokens kept of a text; a batch is padded to its own longest")
    examples: int | None = Field(None, ge=1, description="public and clients' examples together, at most; default: all")
    public: int = Field(200, ge=1, description="examples that the server holds, for pretraining")
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
    tokenizer: str | None = Field(None, description="a local folder or a name on the hub; default: the pretrained model's own")
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
    partition: Literal["iid", "dirichlet_by_class", "dirichlet_by_client", "natural"] = Field(
        "dirichlet_by_class", description="natural: a client owns examples of one value of the column task.columns.group"
    )
    alpha: float = Field(0.5, ge=1e-4, description="concentration of the Dirichlet partitions; smaller is more unequal")

    @model_validator(mode="after")
    def _enough(self) -> "ClientSettings":
        if self.per_round > self.count:
            raise ValueError(f"per_round {self.per_round} must not exceed count {self.count}")
        return self


class FleetSettings(Settings):
    """The devices. A class's budget is `memory_fraction` of its memory, unless `budgets` names one."""

    mix: str = Field("medium", description="a fleet of raffm_ray.devices.MIXES")
    shares: dict[str, float] = Field({}, description="share of a device class; the mix is scaled to the rest")
    budgets: dict[str, dict[str, float]] = Field(
        {}, description="device class -> {params|layer_params|bytes|training_flops|memory_bytes: limit}; <= 1 is a fraction"
    )
    memory_fraction: float = Field(0.25, gt=0, le=1, description="part of a device's memory that training may use")


class SalienceSettings(Settings):
    """How parameters are ranked, and when."""

    metric: str = Field("outputs", description="a metric of raffm_ray.salience.METRICS")
    source: Literal["clients", "public"] = Field(
        "clients", description="who calibrates: clients that hold the full model, or the server on its public part"
    )
    every: int = Field(10, ge=1, description="rounds between rankings")
    until: float = Field(
        0.5, ge=0, le=1, description="fraction of the rounds after which the ranking stays, so that what it chose can settle"
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

    name: str = Field("raffm", description="a strategy of raffm_ray.strategies.STRATEGIES")
    prefix: Literal["default", "none", "smallest", "random", "one"] = Field(
        "default", description="smaller prefixes trained locally; default: the strategy's own"
    )
    aggregation: Literal["default", "coverage", "damped", "all_clients"] = Field(
        "default", description="divisor of the average; default: the strategy's own"
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


class EvaluationSettings(Settings):
    """When the full model and every class's subnetwork are measured on the held-out part."""

    every: int = Field(5, ge=1, description="rounds between evaluations; the last round is always evaluated")
    batch_size: int = Field(256, ge=1)


class PoolSettings(Settings):
    """Where clients run. None of these changes a result except `block_clients`."""

    backend: Literal["ray", "in_process"] = "ray"
    workers: int | None = Field(None, ge=1, description="actors; default: one a core, or a GPU share")
    gpus_per_worker: float = Field(0.0, ge=0, description="1/k of a GPU, or whole GPUs")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where workers compute; auto: on the GPU if they have a share of one"
    )
    block_clients: int | None = Field(None, ge=1, description="clients a block; default: a 64th of the round")
    attempts: int = Field(3, ge=1, description="how often a block is tried when its worker dies")

    @model_validator(mode="after")
    def _share(self) -> "PoolSettings":
        share = self.gpus_per_worker
        if 0 < share < 1 and abs(1 / share - round(1 / share)) > 1e-6:
            raise ValueError(
                f"gpus_per_worker {share} must be 1/k, such as 0.5, 0.3333333 or 0.25: other shares never fill a GPU"
            )
        if share > 1 and share != int(share):
            raise ValueError(f"gpus_per_worker {share} must be whole above 1")
        return self


class Experiment(Settings):
    """Everything that a run's result depends on."""

    name: str = Field("experiment", pattern=r"^[\w.-]+$")
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
    evaluation: EvaluationSettings = EvaluationSettings()
    pool: PoolSettings = PoolSettings()
    baselines: tuple[str, ...] = Field((), description="strategies run beside, on the same rounds, for comparison")


def _field_names(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that are allowed at a path of nested settings."""
    for part in path:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _one_line(error: ValidationError) -> str:
    """The problem of a validation that says most, as `key: rule, got value`, with a near miss for unknown keys."""
    # A misspelt key also leaves its true name missing: the spelling is the mistake.
    problem = min(error.errors(), key=lambda one: {"extra_forbidden": 0, "missing": 2}.get(one["type"], 1))
    *path, last = problem["loc"] or ("",)
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key{near_miss(str(last), _field_names(Experiment, path))}"
    if problem["type"] == "missing":
        return f"{where}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
    return f"{where}: {message}{given}" if where else message


def parse(values: Mapping[str, Any]) -> Experiment:
    """Validates nested settings. Raises UserError with one line that names the key, the rule and the value."""
    try:
        return Experiment.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_one_line(error)) from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also reads 1e-6 as a number, as YAML 1.2 and everybody does."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def _strict_load(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, RecursionError) as error:  # dates that do not exist, numbers of thousands of digits, endless nesting
        raise UserError(f"{source}: not valid YAML: {error}") from None


def override(values: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """Sets `--key.path value` (or `--key.path=value`) pairs, values read as YAML, in a copy of nested settings."""
    result: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    words = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--") and "=" in flag else [flag])]
    for position in range(0, len(words), 2):
        flag = words[position]
        if not flag.startswith("--") or position + 1 == len(words):
            raise UserError(f"{flag!r}: expected pairs like --clients.count 200")
        target = result
        *path, last = flag[2:].split(".")
        for part in path:
            child = target.get(part)
            if child is not None and not isinstance(child, dict):
                raise UserError(f"{flag}: {part!r} has no keys below it")
            target[part] = dict(child or {})
            target = target[part]
        target[last] = _strict_load(words[position + 1], flag)
    return result


def load(path: Path, flags: Sequence[str] = ()) -> Experiment:
    """Reads a YAML file and applies flags. Raises UserError for anything wrong with either."""
    if not path.is_file():
        beside = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{near_miss(str(path), beside) if beside else ''}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    values = _strict_load(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return parse(override(values, flags))


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML, enough to repeat the run."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
