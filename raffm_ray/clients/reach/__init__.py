"""What clients of a round reach of the model besides what their plans say.

- `own_words`: the rows of the table of words that each client reads

Start reading at `own_words`.
"""

__all__ = ["own_words"]
