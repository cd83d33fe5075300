"""What `config.json` of a deployed subnetwork has beside the full model's fields."""

from collections.abc import Mapping
from typing import Any

MODEL_TYPE = "raffm_subnetwork"
OWN_FIELDS = ("base_model_type", "head", "subnetwork")
Kept = Mapping[str, int | list[Any]]
"""`subnetwork`: by axis that is cut, how many indices are kept, or which."""
