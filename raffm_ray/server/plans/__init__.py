"""How strategies answer a budget, where several do it alike.

- `view`: what a strategy may look at; one rate for some axes, some layers
- `of_adapters`: ranks and layers for models with adapters

Start reading at `view`.
"""

__all__ = ["of_adapters", "view"]
