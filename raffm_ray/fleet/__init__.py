"""What every device type can train, this machine as a device, and time on a described cluster.

Open to other packages:

- `command`: `raffm-ray fleet show` and `fleet calibrate`

Used inside only:

- `device_plans`: each device type's plan and costs, without training
- `cluster_description`: a cluster described in YAML
- `cluster_placement`: the workers that a run would get there
- `time_prediction`: predicts a round's real time
- `device_calibration`: measures this machine
- `reference_models`: rates fitted to reference models

Imports `basics`, `settings`, `axes`, `data`, `models`, `subnetworks`, `devices`, `clients`, `server`, `pool`,
`preparation`, `runs`, `benchmarks`.

Start reading at `command`.
"""

__all__ = ["command"]
