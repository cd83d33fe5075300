"""The speed suite: every number beside a limit that was measured in the same run.

Open to other packages:

- `suite`: the cases and the command
- `comparison`: two results of the suite beside each other
- `attention`: attention by shape and precision
- `extraction`: accuracy of cut subnetworks without training
- `measurement`: repeats two sides in turns, and peak memory on the CPU
- `rounds`: rounds without records
- `subnetworks`: training and cutting smaller subnetworks
- `synthetic_data`: data sets made in memory

Used inside only:

- `training`: real training beside a plain loop
- `plain_loop`: the plain PyTorch loop
- `empty_rounds`: clients that do nothing, beside bare Ray
- `bare_ray`: what Ray alone takes
- `scale`: growth with clients and workers
- `cases`: start, records and batches of like length
- `gpu`: several workers on one GPU
- `warm_processes`: processes without Ray

Imports `basics`, `settings`, `axes`, `data`, `models`, `subnetworks`, `clients`, `server`, `pool`, `preparation`,
`runs`, `reports`.

Start reading at `suite`.
"""

__all__ = ["attention", "comparison", "extraction", "measurement", "rounds", "subnetworks", "suite", "synthetic_data"]
