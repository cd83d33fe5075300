"""Simulated devices: what they can do, what a round costs them, when they are awake. No real device is attached.

Open to other packages:

- `profiles`: device types and fleets, from YAML files
- `round_costs`: seconds and joules of a client's round
- `availability`: when devices are awake

Used inside only:

- `correlation`: correlates a client's data with its device

Imports `basics`, `settings`, `subnetworks`.

Start reading at `profiles`.
"""

__all__ = ["availability", "profiles", "round_costs"]
