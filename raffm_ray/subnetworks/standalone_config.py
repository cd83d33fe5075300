"""What `config.json` of a deployed subnetwork has beside the full model's fields."""

from collections.abc import Mapping
from typing import Any

MODEL_TYPE = "raffm_subnetwork (needs the Python package raffm-ray: import raffm_ray before loading)"
"""`model_type`. transformers alone does not know it, and quotes it in its error and its warning: nothing else of the folder is shown there."""
MODEL_TYPES = (MODEL_TYPE, "raffm_subnetwork")
"""All that are known: the second one is in folders of earlier versions."""
OWN_FIELDS = ("base_model_type", "head", "subnetwork")
Kept = Mapping[str, int | list[Any]]
"""`subnetwork`: by axis that is cut, how many indices are kept, or which."""
