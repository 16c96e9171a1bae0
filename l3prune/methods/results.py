"""Tables of a comparison of methods: one row a measurement, their means, a plot. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l3prune.files import atomic_write, write_json, write_table
from l3prune.methods.settings import UNPRUNED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

#: In the output folder.
TABLE, RECORD, TEXT, FIGURE = "methods.csv", "methods.json", "methods.md", "methods.png"

_KEY = ("way", "criterion", "amount")
_COSTS = (
    *("parameters", "nonzero_parameters", "macs", "nonzero_macs", "bytes", "packed_bytes"),
    *("ms", "unpruned_ms"),
)


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row for each way, criterion and amount, the unpruned network first.

    Parameters
    ----------
    rows : sequence of dict
        Of measurements: way, criterion, amount, seed, stage, fold, accuracy and costs.

    Returns
    -------
    table : list of dict
        The key, and of each stage that there is, "pruned" and "retrained": `accuracy`, its mean
        over folds and seeds, and `std`, over the same; seeds that agree in all folds, as before
        retraining, count once. `difference` is the mean over folds of the accuracy less the
        unpruned network's after the same stage (before it, if retraining teaches it nothing), and
        `error` its standard error; `over_chance` and its `error_over_chance` the same against
        random choice of the same way and amount; None without that. Costs are medians, as of the
        last stage.

    Examples
    --------
    >>> costs = dict.fromkeys(_COSTS, 1)
    >>> rows = [
    ...     dict(way=way, criterion="", amount=0, seed=0, stage="pruned", fold=fold, **costs,
    ...          accuracy=value)
    ...     for way, values in {"unpruned": (0.5, 0.7), "a": (0.4, 0.4)}.items()
    ...     for fold, value in enumerate(values, start=1)
    ... ]
    >>> found = summarise(rows)[1]["pruned"]
    >>> round(found["difference"], 9), round(found["error"], 9)
    (-0.2, 0.1)
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _KEY), []).append(row)
    unpruned = next(rows for (way, *_), rows in groups.items() if way == UNPRUNED)
    table = []
    for key, found in groups.items():
        stages = {row["stage"]: None for row in found}
        entry: dict[str, Any] = dict(zip(_KEY, key, strict=True))
        chance = groups.get((key[0], "random", key[2]))
        for stage in stages:
            values = _by_fold(found, stage)
            entry[stage] = {
                **_spread(values),
                **_paired(values, _by_fold(unpruned, stage), "difference", "error"),
                **_paired(
                    values,
                    _by_fold(chance, stage) if chance and key[1] != "random" else {},
                    "over_chance",
                    "error_over_chance",
                ),
            }
        last = [row for row in found if row["stage"] == [*stages][-1]]
        for name in _COSTS:
            known = [row[name] for row in last if row[name] is not None]
            entry[name] = float(np.median(known)) if known else None
        table.append(entry)
    return table


def _by_fold(rows: Sequence[Row], stage: str) -> dict[int, list[float]]:
    """The accuracies of each fold, by seed."""
    stages = {row["stage"] for row in rows}
    chosen = stage if stage in stages else "pruned"
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["stage"] == chosen:
            found.setdefault(row["fold"], []).append(row["accuracy"])
    if all(len(set(values)) == 1 for values in found.values()):
        return {fold: values[:1] for fold, values in found.items()}
    return found


def _spread(values: Mapping[int, Sequence[float]]) -> dict[str, float]:
    together = np.concatenate([*values.values()])
    std = together.std(ddof=1) if together.size > 1 else 0.0
    return {"accuracy": float(together.mean()), "std": float(std)}


def _paired(
    values: Mapping[int, Sequence[float]],
    others: Mapping[int, Sequence[float]],
    name: str,
    error: str,
) -> dict[str, float | None]:
    folds = [fold for fold in values if fold in others]
    if not folds:
        return {name: None, error: None}
    differences = [np.mean(values[fold]) - np.mean(others[fold]) for fold in folds]
    found = None
    if len(folds) > 1:
        found = float(np.std(differences, ddof=1) / np.sqrt(len(folds)))
    return {name: float(np.mean(differences)), error: found}


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points that no other one beats: none is as cheap and better, or as good and
    cheaper.

    Parameters
    ----------
    points : sequence of (cost, accuracy)

    Examples
    --------
    >>> pareto([(1, 0.5), (2, 0.4), (3, 0.9), (3, 0.8), (1, 0.5)])
    [0, 2, 4]
    """
    return [
        number
        for number, (cost, accuracy) in enumerate(points)
        if not any(
            other_cost <= cost and other >= accuracy and (other_cost, other) != (cost, accuracy)
            for other_cost, other in points
        )
    ]


def markdown(table: Sequence[Row], told: Mapping[str, Any]) -> str:
    """The table for people.

    Examples
    --------
    >>> row = dict(way="unpruned", criterion="", amount=0, **dict.fromkeys(_COSTS, 1000))
    >>> row["pruned"] = {"accuracy": 0.5, "std": 0.1, "difference": 0.0, "error": 0.0}
    >>> print(markdown([row], {"folds": [1, 2], "num_epochs": 3}).splitlines()[-1])
    | unpruned | – | 50.0 ± 10.0 | – | – | – | 1.0 k | 1.0 k | 1.0 k | 1.0 k | 1000.00 | 100 % |
    """
    epochs = told["num_epochs"]
    batches = told.get("train_epoch_size")
    of = f" of {batches} batches" if batches else ""
    lines = [
        f"Test accuracy in percent, mean ± standard deviation over folds "
        f"{', '.join(map(str, told['folds']))} and seeds; differences, in points, are paired by "
        f"fold, mean ± standard error. The budget is {epochs} epoch{'s' * (epochs != 1)}{of} for "
        "every row. Parameters and MACs are those that are not zero; ms is the median on this "
        "machine, the front end left out, and compared with the unpruned network's measured in "
        "turns with it.",
        "",
        "| way | percent | pruned | retrained | less the unpruned network | less chance | "
        "parameters | MACs | checkpoint, bytes | packed, bytes | ms | of the unpruned's |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        after = row.get("retrained")
        cells = [
            label(row),
            f"{row['amount']:g}" if row["way"] != UNPRUNED else "–",
            _plus_minus(row.get("pruned"), "accuracy", "std"),
            _plus_minus(after, "accuracy", "std"),
            _plus_minus(after, "difference", "error", signed=True),
            _plus_minus(after, "over_chance", "error_over_chance", signed=True),
            *(_short(row[name]) for name in ("nonzero_parameters", "nonzero_macs")),
            *(_short(row[name]) for name in ("bytes", "packed_bytes")),
            f"{row['ms']:.2f}",
            f"{100 * row['ms'] / row['unpruned_ms']:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def label(row: Row) -> str:
    """What a row is called.

    Examples
    --------
    >>> label({"way": "filterwise", "criterion": "l1"})
    'filterwise l1'
    """
    return f"{row['way']} {row['criterion']}".strip()


def _plus_minus(found: Row | None, value: str, error: str, signed: bool = False) -> str:
    if found is None or found.get(value) is None:
        return "–"
    text = f"{100 * found[value]:{'+' if signed else ''}.1f}"
    return text if found[error] is None else f"{text} ± {100 * found[error]:.1f}"


def _short(count: float | None) -> str:
    if count is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:g}"


def plot(table: Sequence[Row]) -> Figure:
    """Accuracy after retraining against MACs, packed bytes and time.

    Time is a share of the unpruned network's, which was measured in turns with each: milliseconds
    of rows are of different moments. The line joins the rows that no other beats in the mean; error
    bars say how little that may mean.

    Examples
    --------
    >>> row = dict(way="unpruned", criterion="", amount=0, **dict.fromkeys(_COSTS, 1000))
    >>> row["pruned"] = {"accuracy": 0.5, "std": 0.1, "difference": 0.0, "error": 0.0}
    >>> len(plot([row]).axes)
    3
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    table = [{**row, "share": 100 * row["ms"] / row["unpruned_ms"]} for row in table]
    names = {
        "nonzero_macs": "MACs",
        "packed_bytes": "packed file, bytes",
        "share": "time, % of the unpruned network's",
    }
    # The sparse engine does not take all networks: of the others there is no packed file.
    known = [cost for cost in names if any(row[cost] is not None for row in table)]
    figure = Figure(figsize=(2 + 4 * len(known), 5), layout="constrained")
    panels = figure.subplots(1, len(known), sharey=True)
    for axes, cost in zip(panels, known, strict=True):
        _scatter(axes, [row for row in table if row[cost] is not None], cost)
        axes.set(xlabel=names[cost])
        if cost == "share":
            axes.set_xlim(left=0)
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="test accuracy, retrained, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside right upper")
    return figure


def _scatter(axes: Axes, table: Sequence[Row], cost: str) -> None:
    last = [row.get("retrained") or row["pruned"] for row in table]
    accuracies = [100 * found["accuracy"] for found in last]
    names = dict.fromkeys(map(label, table))
    colours = {name: f"C{number % 10}" for number, name in enumerate(names)}
    markers = {name: "osD^v<>Pp*hX"[number % 12] for number, name in enumerate(names)}
    for name in names:
        chosen = [number for number, row in enumerate(table) if label(row) == name]
        axes.errorbar(
            [table[number][cost] for number in chosen],
            [accuracies[number] for number in chosen],
            [100 * last[number]["std"] for number in chosen],
            fmt=markers[name],
            color="black" if name == UNPRUNED else colours[name],
            markersize=5,
            elinewidth=0.5,
            label=name,
        )
    points = [(row[cost], accuracy) for row, accuracy in zip(table, accuracies, strict=True)]
    front = sorted(points[number] for number in pareto(points))
    axes.plot(*zip(*front, strict=True), color="grey", linewidth=1, zorder=0)


def write_results(folder: Path, rows: Sequence[Row], told: Mapping[str, Any]) -> str:
    """Write the table as CSV, JSON, Markdown and plot; gives the Markdown.

    Parameters
    ----------
    folder : pathlib.Path
    rows : sequence of dict
        See `summarise`.
    told : mapping
        The settings.

    Examples
    --------
    >>> write_results(Path("unused"), [], {})
    Traceback (most recent call last):
        ...
    StopIteration
    """
    table = summarise(rows)
    text = markdown(table, told)
    write_table(folder / TABLE, rows)
    write_json(folder / RECORD, {"settings": told, "summary": table})
    with atomic_write(folder / TEXT) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_write(folder / FIGURE) as temporary:
        plot(table).savefig(temporary, dpi=120)
    return text
