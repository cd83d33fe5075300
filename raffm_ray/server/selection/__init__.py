"""Who is chosen for a round, and what the server remembers of clients for it.

Used inside `server`, and by the settings' checks:

- `table`: the selections, a function and a row each
- `oort`: Oort: utility, speed and exploration
- `known`: what a selection may look at
- `records`: what the server remembers of every client
- `draws`: draws and smallest keys, ties and all
- `choosing`: chooses a round's clients, and remembers what came of them

Start reading at `table`.
"""

__all__ = ["choosing", "draws", "known", "oort", "records", "table"]
