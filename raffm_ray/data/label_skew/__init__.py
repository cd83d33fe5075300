"""How unlike clients are in the labels that they own, and batches that make up for it.

Open to other packages:

- `label_distribution`: how many examples of each label a client owns
- `class_batches`: batches with other shares of the classes than a client's examples have

Start reading at `label_distribution`.
"""

__all__ = ["class_batches", "label_distribution"]
