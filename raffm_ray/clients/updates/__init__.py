"""Client updates: a client's local training as a whole, one function each; the table that names them is `client_updates`.

- `row`: the form of an update, what it is given and what it returns
- `control_variates`: SCAFFOLD
- `standard`: steps of an optimizer, with smaller prefixes of the own plan

Start reading at `row`.
"""

__all__ = ["control_variates", "row", "standard"]
