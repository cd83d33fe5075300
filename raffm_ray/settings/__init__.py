"""The experiment as typed, frozen settings, read from YAML and command-line flags.

Open to other packages:

- `experiment`: every setting of an experiment
- `task_and_model`: settings of the data and of the model
- `adapters`: settings of low-rank adapters
- `evaluation`: settings of evaluation
- `strategy`: settings of a strategy, and of its baselines
- `clients`: settings of who the clients are, what they own, and who is chosen
- `execution`: settings of the pool and of checkpoints
- `loading`: reads YAML and flags; every mistake is one line
- `plugins`: plug-ins, where they are here, with their digests
- `paths`: makes paths of files and folders absolute
- `description`: what each setting may be, as text
- `former_values`: what values were called in earlier versions
- `base`: the base class of all settings, and types that they have

Used inside only:

- `compression`: settings of budgets, and of how parameters are ranked and cut
- `model_objects`: keeps a fitted model as a folder

Imports `basics`.

Start reading at `experiment`.
"""

__all__ = [
    "adapters",
    "base",
    "clients",
    "description",
    "evaluation",
    "execution",
    "experiment",
    "former_values",
    "loading",
    "paths",
    "plugins",
    "strategy",
    "task_and_model",
]
