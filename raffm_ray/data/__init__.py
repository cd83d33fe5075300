"""Tasks and their examples, divided over clients.

Open to other packages:

- `tasks`: a data set as arrays: public, clients', held-out and validation parts
- `examples`: columns of arrays, and batches of them
- `encoding`: tokenizes texts and decodes images into cached, memory-mapped columns
- `sources`: reads data with the `datasets` library
- `inspection`: what is in a data set that nobody has described
- `metrics`: accuracy, F1, perplexity and others
- `data_summary`: what the data looks like, before anything is trained
- `partition`: which client owns which examples
- `label_skew`: how unlike clients are in the labels that they own, and batches that make up for it
- `shares`: the record and the table of who owns what
- `task_types`: classification, regression, question answering, language modelling: rows to model inputs

Used inside only:

- `layouts`: which files of a local folder are which split
- `labels`: how many classes there are, and what is odd about them
- `own_data`: data that a function gives instead of a file
- `packing`: texts of one owner as blocks of equal length

Imports `basics`, `settings`.

Start reading at `tasks`.
"""

__all__ = [
    "data_summary",
    "encoding",
    "examples",
    "inspection",
    "label_skew",
    "metrics",
    "partition",
    "shares",
    "sources",
    "task_types",
    "tasks",
]
