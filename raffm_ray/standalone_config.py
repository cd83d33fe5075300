"""The configuration by which transformers knows a deployed subnetwork. It is light: it is imported wherever transformers is."""

from typing import Any

from transformers.configuration_utils import PretrainedConfig

MODEL_TYPE = "raffm_subnetwork"


class SubnetworkConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is not followed
    """What `model_type: raffm_subnetwork` stands for. What it is read from decides which stock configuration it is one of."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration of the family's own class, with `base_model_type`, `head` and `subnetwork` beside its fields.

        Raises UserError where the family is not known or what is kept does not fit it.
        """
        from raffm_ray.standalone import config_class_of

        return config_class_of(config_dict).from_dict(config_dict, **kwargs)


def register() -> None:
    """Adds it to the table of transformers' configurations."""
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register(MODEL_TYPE, SubnetworkConfig, exist_ok=True)
