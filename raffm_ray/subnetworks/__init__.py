"""From salience and a budget to a plan, what a plan costs, and the subnetwork as a model of its own.

Open to other packages:

- `extraction`: a budget becomes a plan
- `salience`: scores of units, and their order
- `calibration`: sums of activations and gradients that salience needs
- `budgets`: what a device allows a plan to cost
- `client_optimizers`: optimizers of local training, and their memory
- `costs`: parameters, bytes, FLOPs and memory of a plan
- `rotation`: exact changes of basis inside attention heads
- `norm_correction`: corrects norms where the residual stream is cut
- `size_specific`: parameters of which every size has its own copy
- `unit_coverage`: which units each device type keeps, and how often they were trained
- `standalone`: saves and loads a subnetwork as a transformers model
- `standalone_config`: the fields of its `config.json`
- `transformers_registration`: lets `AutoModel` load it

Used inside only:

- `activations`: what is in memory of an example besides parameters
- `backward_costs`: FLOPs and activations of a backward pass with frozen parameters
- `native_config`: subnetworks that a stock configuration describes

Imports `basics`, `axes`, `models`.

Start reading at `extraction`.
"""

__all__ = [
    "budgets",
    "calibration",
    "client_optimizers",
    "costs",
    "extraction",
    "norm_correction",
    "rotation",
    "salience",
    "size_specific",
    "standalone",
    "standalone_config",
    "transformers_registration",
    "unit_coverage",
]
