"""The command line. It may use every other package.

Open to other packages:

- `main`: the entry point

Used inside only:

- `parser`: the tree of commands: what a call means, and its help
- `commands`: what each command about runs does
- `tools`: what the others do
- `flags`: arguments that several commands have
- `settings_text`: settings as lines of text
- `starter`: a first experiment on one's own data
- `submit`: a run as a job on a Ray cluster
- `signals`: Ctrl-C and SIGTERM

Imports `basics`, `settings`, `data`, `models`, `pool`, `preparation`, `runs`, `reports`, `studies`, `deployment`, `benchmarks`,
`fleet`.

Start reading at `main`.
"""

__all__ = ["main"]
