"""Client updates: a client's local training as a whole, one function each; the table that names them is `client_updates`.

- `row`: the form of an update, what it is given and what it returns
- `steps`: steps of an optimizer, which most of them are made of
- `standard`: such steps, with smaller prefixes of the own plan
- `control_variates`: SCAFFOLD and FedDyn, which take out what each client's data pulls towards
- `personal`: Ditto, pFedMe and FedRep, which give each client parameters of its own
- `pruning`: the self-pruning of HetLoRA, after which a client may keep fewer ranks
- `meta`: Per-FedAvg, whose model is to be tuned afterwards

Start reading at `row`.
"""

__all__ = ["control_variates", "meta", "personal", "pruning", "row", "standard", "steps"]
