"""Names for a model's dimensions. A plan keeps indices of each name; a subnetwork is what a plan keeps.

Open to other packages:

- `indexing`: `Axis`, `Plan`, and `take` and `scatter_add`, the only functions that touch indices
- `layout`: a model described by the axes of its parameters
- `dim_sizes`: how large a plan leaves each dimension
- `nesting`: a plan inside a larger plan
- `serialization`: values that hold plans and arrays, as JSON and arrays, without pickle
- `flat_parameters`: all parameters as one flat float32 array

Imports no other package.

Start reading at `indexing`.
"""

__all__ = ["dim_sizes", "flat_parameters", "indexing", "layout", "nesting", "serialization"]
