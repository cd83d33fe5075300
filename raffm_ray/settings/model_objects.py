"""A model that was fitted in this process, kept as a folder that settings can name."""

import os
import shutil
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from raffm_ray.basics.cache import writable_cache
from raffm_ray.basics.errors import UserError


def kept_model(model: Any, tokenizer: Any = None) -> str:
    """The folder of a model of transformers, with its tokenizer, in the folder `models` of the cache: the same for the same content.

    Raises UserError for what is no such model, or only an adapter of one.
    """
    for what, one in (("model", model), ("tokenizer", tokenizer)):
        if one is not None and not hasattr(one, "save_pretrained"):
            raise UserError(f"{what}: expected one of transformers, which has save_pretrained, got {type(one).__name__}")
    kept = writable_cache() / "models"
    kept.mkdir(exist_ok=True)
    made = Path(mkdtemp(dir=kept))
    try:
        for one in (model, tokenizer):
            if one is not None:
                one.save_pretrained(str(made))
        if not (made / "config.json").is_file():
            raise UserError(
                f"model: {type(model).__name__} saves no config.json; of adapters, give the merged model (merge_and_unload)"
            )
        place = kept / _digest(made)
        if not place.is_dir():
            os.replace(made, place)
        return str(place)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _digest(folder: Path) -> str:
    found = sha256()
    for path in sorted(folder.iterdir()):
        found.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while part := file.read(2**20):
                found.update(part)
    return found.hexdigest()[:32]
