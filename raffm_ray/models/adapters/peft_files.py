"""Adapters in the files of the library `peft`: `adapter_config.json` and `adapter_model.safetensors`. The library itself is not needed."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.models.adapters.lora import DOWN, UP, Adapters, factors
from raffm_ray.settings.adapters import AdapterSettings

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
"""What can be read: field of the configuration -> its values. Other ways to begin (PiSSA, OLoRA, CorDA, LoftQ) change the model that is adapted."""


@dataclass(frozen=True)
class AdapterFolder:
    """What a folder of `peft` holds. `settings`: of the adapters, with the largest rank of all for each; `tensors`: by the names of this project, A and B
    [rank, ...], filled up with ranks that add nothing, and task heads that were trained beside them."""

    settings: AdapterSettings
    tensors: Mapping[str, Tensor]


def adapter_settings(settings: AdapterSettings) -> AdapterSettings:
    """The settings, or those of the folder that they name. Raises UserError as `read_adapters`, and for settings that the folder has itself."""
    if settings.pretrained is None:
        return settings
    own = {
        name
        for name in ("rank", "alpha", "targets", "scaling")
        if getattr(settings, name) != AdapterSettings.model_fields[name].default
    }
    if own:
        raise UserError(f"model.adapters.{min(own)}: is what the folder of model.adapters.pretrained says: leave it out")
    return read_adapters(settings.pretrained, settings.dropout).settings


def read_adapters(place: str, dropout: float = 0.0) -> AdapterFolder:
    """Raises UserError for a folder without adapters, a damaged one, and adapters of another kind than LoRA."""
    folder, setting = Path(place), "model.adapters.pretrained"
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        stored: dict[str, Tensor] = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{setting}: {place}: no adapters of peft ({CONFIG}, {WEIGHTS}) that can be read: {in_short(error)}"
        ) from None
    for key, values in PLAIN.items():
        if config.get(key) not in (*values, None):
            raise UserError(f"{setting}: {place}: {key} {config[key]!r}: only {', '.join(map(str, values))} can be read")
    named = {name.removeprefix(PREFIX): values.float() for name, values in stored.items()}
    modules = [name.removesuffix(f".{DOWN}.weight") for name in named if name.endswith(f".{DOWN}.weight")]
    if not modules:
        raise UserError(f"{setting}: {place}: {WEIGHTS} holds no {DOWN}")
    if left := [name for name in named if "lora_" in name and not name.endswith((f"{DOWN}.weight", f"{UP}.weight"))]:
        raise UserError(f"{setting}: {place}: {left[0]}: only adapters of linear layers can be read")
    ranks = {module: len(named[factors(module)[0]]) for module in modules}
    rank = max(ranks.values())
    alpha = float(config.get("lora_alpha") or rank)
    settings = AdapterSettings(rank=rank, alpha=alpha, targets=tuple(modules), dropout=dropout)
    tensors = {name: values for name, values in named.items() if "lora_" not in name}
    for module, own in ranks.items():
        down, up = factors(module)
        scale = _of(config.get("alpha_pattern"), module, alpha) / (sqrt(own) if config.get("use_rslora") else own)
        tensors[down] = _filled(named[down], rank, 0)
        tensors[up] = _filled(named[up] * (scale * rank / alpha), rank, 1)
    return AdapterFolder(settings, tensors)


def _of(pattern: Mapping[str, float] | None, module: str, otherwise: float) -> float:
    """A module's own value: of the first key that is its name or the end of it, or a regular expression of that."""
    found = (value for key, value in (pattern or {}).items() if re.fullmatch(rf"(.*\.)?{key}", module))
    return float(next(found, otherwise))


def _filled(values: Tensor, size: int, position: int) -> Tensor:
    """With zeros up to a size. Where both projections end in zeros nothing would ever train, and equal rows of A would train alike: A is filled
    with its own mean size, in signs of which no two rows have the same (Walsh's functions)."""
    lacking = size - values.shape[position]
    if not lacking:
        return values.contiguous()
    shape = list(values.shape)
    shape[position] = lacking
    if position:
        return torch.cat([values, values.new_zeros(shape)], dim=position)
    signs = [[(-1.0) ** (row & column).bit_count() for column in range(shape[1])] for row in range(1, lacking + 1)]
    return torch.cat([values, values.abs().mean() * torch.tensor(signs)])


def write_adapters(folder: Path, tensors: Mapping[str, Tensor], adapters: Adapters, base: str, transposed: bool) -> None:
    """Writes adapters, and the trained heads beside them, as `PeftModel.from_pretrained` reads them.

    `tensors`: by name, adapters of any ranks and heads; `base`: what they are adapters of; `transposed`: whether the model's projections are
    `Conv1D`. What a module adds stays what it is: its alpha is s x its rank x what its ranks count.
    """
    ranks = {module: len(tensors[factors(module)[0]]) for module in adapters.modules if factors(module)[0] in tensors}
    heads = sorted({name.rpartition(".")[0] for name in tensors if not name.endswith((f"{DOWN}.weight", f"{UP}.weight"))})
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": adapters.rank,
        "lora_alpha": adapters.scale * adapters.rank,
        "lora_dropout": adapters.dropout,
        "target_modules": list(ranks),
        "rank_pattern": {re.escape(module): rank for module, rank in ranks.items() if rank != adapters.rank},
        "alpha_pattern": {
            re.escape(module): adapters.scale * adapters.share(rank) * rank
            for module, rank in ranks.items()
            if rank != adapters.rank
        },
        "modules_to_save": heads or None,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(
        {f"{PREFIX}{name}": values.detach().contiguous() for name, values in tensors.items()}, folder / WEIGHTS, {"format": "pt"}
    )
