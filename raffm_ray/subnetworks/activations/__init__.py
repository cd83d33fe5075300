"""What is in memory of an example besides parameters.

- `by_block`: what autograd keeps until the backward pass, block by block, and what is live while an example is answered

Start reading at `by_block`.
"""

__all__ = ["by_block"]
