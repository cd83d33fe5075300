"""Helpers that know nothing of models or federated learning. Every other package may use them; they use none.

Open to other packages:

- `errors`: `UserError` and the other errors that end a command with one line
- `files`: atomic writes, locks and checks of paths
- `temporary_folders`: temporary folders that are removed with their process
- `seeding`: the only source of random generators
- `cache`: where pretrained models and tokenized data are kept
- `flags`: flags of a command that are not settings
- `formatting`: bytes, seconds and joules as text
- `machine`: this machine's processor and memory
- `registry`: tables of variants, and the decorators that add rows to them
- `plugins`: Python files and modules that add such rows, read and imported
- `tables`: tables on a terminal that break between words
- `profiling`: stopwatches: where a round's real time goes
- `version`: the package's version and commit

Imports no other package.

Start reading at `errors`.
"""

__all__ = [
    "cache",
    "errors",
    "files",
    "flags",
    "formatting",
    "machine",
    "plugins",
    "profiling",
    "registry",
    "seeding",
    "tables",
    "temporary_folders",
    "version",
]
