"""What clients, and blocks of them, reach of the model.

- `own_words`: the rows of the table of words that each client reads
- `block_reach`: what a block's sum holds

Start reading at `own_words`.
"""

__all__ = ["block_reach", "own_words"]
