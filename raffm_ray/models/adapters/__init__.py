"""Low-rank adapters beside frozen projections: which projections have one, their axes and dims, and the modules that compute them.

- `targets`: the projections of a layout by their kind, and those that settings name
- `lora`: what adapters add to a layout and to a model
- `peft_files`: adapters in the files of the library `peft`

Start reading at `lora`.
"""

__all__ = ["lora", "peft_files", "targets"]
