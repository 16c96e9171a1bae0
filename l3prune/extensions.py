"""Criteria and networks of other packages, by the entry points that they were installed with."""

from __future__ import annotations

import functools
from importlib import metadata

from l3prune.errors import L3PruneError

#: Groups of entry points: what a package adds. An entry point is called as what it adds, and names
#: the module that registers it, or something in that module.
CRITERIA, NETWORKS = "l3prune.criteria", "l3prune.networks"


@functools.cache
def _found(group: str) -> dict[str, metadata.EntryPoint]:
    return {each.name: each for each in metadata.entry_points(group=group)}


def names(group: str) -> list[str]:
    """What installed packages add; nothing is imported.

    Examples
    --------
    >>> names("l3prune.nothing")
    []
    """
    return sorted(_found(group))


def load(group: str, name: str) -> bool:
    """Import the module that registers a name; False if no package adds it.

    Raises
    ------
    L3PruneError
        The module cannot be imported, or has nothing of the name that the entry point says.

    Examples
    --------
    >>> load("l3prune.criteria", "nothing")
    False
    """
    entry = _found(group).get(name)
    if entry is None:
        return False
    try:
        entry.load()
    except L3PruneError:
        raise
    except Exception as error:  # whatever a module of somebody else does
        raise L3PruneError(
            f"{told(group, name)} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return True


def told(group: str, name: str) -> str:
    """Where a name comes from, for messages.

    Examples
    --------
    >>> told("l3prune.criteria", "nothing")
    "'nothing' of l3prune.criteria"
    """
    entry = _found(group).get(name)
    if entry is None or entry.dist is None:
        return f"{name!r} of {group}"
    return f"{name!r} of {group}, {entry.value} of package {entry.dist.name},"
