"""How much becomes zero with which lambda, and what it costs: the runs of a path, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l3prune import models, surgery
from l3prune.checkpoints import BEST
from l3prune.corpus import REPORT
from l3prune.errors import L3PruneError
from l3prune.evaluation import measure
from l3prune.files import atomic_write, read_json, write_table
from l3prune.zero_filters import check_same_output, group_sparsity, plan_zero_filters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: In the folder of a path.
PATH, PLOT = "path.csv", "path.png"


def row(run_dir: Path, regularization: float) -> dict[str, Any]:
    """What a run trained, and what is left of it without its zero filters.

    Raises
    ------
    L3PruneError
        The run's report is damaged, or the output changes without these filters.

    Examples
    --------
    >>> row(Path("/nowhere"), 1e-3)
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: /nowhere/report.json is missing or damaged
    """
    path = run_dir / REPORT
    report = read_json(path) if path.is_file() else {}
    if "trained" not in report:
        raise L3PruneError(f"{path} is missing or damaged")
    figures = report["trained"]
    network = models.load(run_dir / BEST)
    sparsity = group_sparsity(network)
    smaller, difference = network, 0.0
    if sparsity:
        smaller = surgery.remove_filters(network, plan_zero_filters(network))
        difference = check_same_output(network, smaller)
    costs = measure(smaller)
    return {
        "lambda": regularization,
        "group_sparsity": sparsity,
        **{name: figures[name] for name in figures if name.startswith(("validation_", "test_"))},
        "largest_difference": difference,
        "parameters": smaller.count_params(),
        "macs": costs["macs"],
        "bytes": costs["bytes"],
    }


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table and its plot.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write(folder, [{"lambda": 0.1, "group_sparsity": 0.5, "test_accuracy": 0.9}])
    >>> sorted(path.name for path in folder.iterdir())
    ['path.csv', 'path.png']
    """
    write_table(folder / PATH, rows)
    with atomic_write(folder / PLOT) as temporary:
        _plot(rows).savefig(temporary, dpi=120)


def _plot(rows: Sequence[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    values = [each["lambda"] for each in rows]
    names = ("group_sparsity", "validation_accuracy", "test_accuracy", "validation_map", "test_map")
    for name in names:
        if all(name in each for each in rows):
            label = name.replace("_", " ")
            axes.plot(values, [100 * each[name] for each in rows], "o-", label=label)
    if min(values) > 0:
        axes.set_xscale("log")
    axes.set(xlabel="lambda", ylabel="%")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
