"""Arguments that several commands have."""

from typing import Annotated

from cyclopts import Parameter

Config = Annotated[str, Parameter(name="CONFIG", help="file with the settings of an experiment")]
Run = Annotated[str, Parameter(name="DIR", help="folder of a run, or the URL of its copy")]
Settings = Annotated[str, Parameter(name="SETTINGS", allow_leading_hyphen=True, show=False)]
"""Any settings, as `--key.path value` or `--key.path=value`: they are checked with the file that they change."""
Plugins = Annotated[
    tuple[str, ...],
    Parameter(
        name="--plugin",
        metavar="FILE|MODULE",
        negative=(),
        show_default=False,
        help="Python code that adds to the tables of methods, besides what the settings name; several times: all of them",
    ),
]
Moved = Annotated[
    tuple[str, ...],
    Parameter(
        name="--plugin",
        metavar="FILE",
        negative=(),
        show_default=False,
        help="where a plug-in of the run is, if it is not where it was",
    ),
]
Out = Annotated[str | None, Parameter(metavar="DIR", help="folder that is written; default: a new one in runs/")]
RunOut = Annotated[
    str | None,
    Parameter(metavar="DIR|URL", help="folder of the run; default: runs/NAME-TIME; a URL: copied there after every round"),
]
Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
