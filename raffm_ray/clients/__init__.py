"""What a client does in a round, without processes and without Ray.

Open to other packages:

- `messages`: the data that crosses a process boundary
- `client_runner`: runs a block of clients, and evaluations
- `client_state`: what a client keeps from round to round
- `folds`: what clients add up to besides weighted sums
- `reach`: what clients, and blocks of them, reach of the model
- `updates`: client updates, one function each
- `evaluation`: a client's own model
- `module_factory`: makes subnetwork modules and caches their skeletons
- `local_training`: the training loop of one client
- `central_training`: training of one module at the server
- `client_updates`: a client's local training as a whole
- `stacked_training`: the same for several clients at once
- `update_checks`: refuses changes that are not finite or too large, and sums of another shape
- `augmentation`: random crops and flips of a client's images

Used inside only:

- `single_training`: the training of one client
- `training_result`: what came of a client's training
- `block_sums`: the sum of a block's updates
- `device_parameters`: trained and frozen parameters where they are computed with
- `explained_errors`: whose an error is, and what to do about it

Imports `basics`, `settings`, `axes`, `data`, `models`, `subnetworks`.

Start reading at `client_runner`.
"""

__all__ = [
    "augmentation",
    "central_training",
    "client_runner",
    "client_state",
    "client_updates",
    "evaluation",
    "folds",
    "local_training",
    "messages",
    "module_factory",
    "reach",
    "stacked_training",
    "update_checks",
    "updates",
]
