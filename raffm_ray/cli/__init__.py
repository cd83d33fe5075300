"""The command line. It may use every other package.

Open to other packages:

- `main`: the entry point

Used inside only:

- `commands`: what each command does
- `submit`: a run as a job on a Ray cluster
- `signals`: Ctrl-C and SIGTERM

Imports `basics`, `settings`, `data`, `pool`, `preparation`, `runs`, `reports`, `studies`, `deployment`, `benchmarks`,
`fleet`.

Start reading at `main`.
"""

__all__ = ["main"]
