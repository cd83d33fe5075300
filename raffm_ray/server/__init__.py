"""The federated server as pure functions: state in, state out.

Open to other packages:

- `rounds`: begins and finishes a round
- `strategies`: RaFFM and its rivals: who trains which plan
- `plans`: what a strategy may look at, and how several answer a budget
- `optimizers`: FedAvg's step, momentum, Adam, Yogi
- `ranking`: when parameters are ranked, and by what
- `device_type_plans`: which subnetwork every device type trains and gets
- `residual_pace`: how fast the residual stream is cut beside the layers
- `state`: what the next round depends on
- `adapter_rules`: how adapters of unequal ranks are merged
- `blocks`: how a round is divided into blocks
- `kept`: what clients and their devices keep between rounds
- `clock`: the virtual clock, and late updates
- `round_schedule`: predicts a round's work, seconds and joules
- `workload`: FLOPs and bytes of a client's round
- `early_stopping`: what the validation part decides
- `step_memory`: how many copies of the parameters a step takes

Used inside only:

- `selection`: who is chosen for a round: a table, and what the server remembers for it
- `agnostic_mixture`: what device types weigh, by their losses
- `aggregation`: averages the updates, entry by entry (each worker has summed its own clients)

Imports `basics`, `settings`, `axes`, `data`, `models`, `subnetworks`, `devices`, `clients`.

Start reading at `rounds`.
"""

__all__ = [
    "adapter_rules",
    "blocks",
    "clock",
    "device_type_plans",
    "early_stopping",
    "kept",
    "optimizers",
    "plans",
    "ranking",
    "residual_pace",
    "round_schedule",
    "rounds",
    "state",
    "step_memory",
    "strategies",
    "workload",
]
