"""Registers deployed subnetworks with transformers when `raffm_ray` is imported.

Importing transformers takes a second that a command without a model need not wait for, so it is told when it is imported, before or after
this package.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from raffm_ray.subnetworks.standalone_config import MODEL_TYPES

TOLD = "transformers.models.auto.configuration_auto"
"""The module of the table that a folder's `model_type` is looked up in."""


def _tell() -> None:
    from transformers.configuration_utils import PretrainedConfig
    from transformers.models.auto.configuration_auto import AutoConfig

    class SubnetworkConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is not followed
        """What the model types of subnetworks stand for. What it is read from decides which stock configuration it is one of."""

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            """A configuration of the family's own class. Raises UserError where the family is not known or what is kept does not fit."""
            from raffm_ray.subnetworks.standalone import config_class_of

            return config_class_of(config_dict).from_dict(config_dict, **kwargs)

    for name in MODEL_TYPES:
        AutoConfig.register(name, type("SubnetworkConfig", (SubnetworkConfig,), {"model_type": name}), exist_ok=True)


class _WhenImported(MetaPathFinder):
    """Finds `TOLD` as it would have been found, once, and tells it at the end of its import."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != TOLD:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_tell(module: ModuleType) -> None:
                run(module)
                _tell()

            spec.loader.exec_module = run_and_tell  # type: ignore[method-assign]  # this one module's own loader
        return spec


def tell_transformers() -> None:
    """Lets transformers know deployed subnetworks: now, or as soon as it is imported."""
    if TOLD in sys.modules:
        _tell()
    else:
        sys.meta_path.insert(0, _WhenImported())
