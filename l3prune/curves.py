"""Tables of sensitivities: rows, their file, the curves that budgets take, a figure. NumPy only."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, write_table

#: Percent of a layer that goes, unless others are asked for.
AMOUNTS = (20, 30, 40, 50, 60, 70, 80, 85, 90, 95)

#: In the folder of a scan: the rows, and what they are of.
TABLE = "sensitivity.csv"
RECORD = "sensitivity.json"

#: The row of the whole network stands under this name, with amount 0.
UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Row:
    """What one layer pruned by one amount does, all others whole.

    Attributes
    ----------
    layer : str
        Or `UNPRUNED`.
    amount_percent : float
        That was asked for.
    left, of : int
        Weights (layerwise) or filters (filterwise) of the layer that stay, and that it has.
    weights_left : int
        Convolution weights of the whole network that stay.
    mse : float
        Of the embedding from the whole network's.
    relative_mse : float
        The same over the variance of the whole network's embedding.
    accuracy : float or None
        Of a classifier on the embedding, or on audio-visual correspondence, where that was asked
        for.

    Examples
    --------
    >>> Row("conv_1", 50.0, 144, 288, 422496, 0.2, 0.1).accuracy is None
    True
    """

    layer: str
    amount_percent: float
    left: int
    of: int
    weights_left: int
    mse: float
    relative_mse: float
    accuracy: float | None = None


COLUMNS = tuple(field.name for field in fields(Row))


def fraction(percent: float) -> float:
    """An amount in percent as a fraction.

    Raises
    ------
    ParameterError
        It is not above 0 and below 100.

    Examples
    --------
    >>> fraction(95)
    0.95
    """
    if not 0 < percent < 100:
        raise ParameterError(f"amount {percent:g} is not in percent, above 0 and below 100")
    return percent / 100


def tidy(amounts: Sequence[float]) -> list[float]:
    """Amounts in rising order, each once, as a file has them.

    Raises
    ------
    ParameterError
        There are none, or one is not above 0 and below 100.

    Examples
    --------
    >>> tidy([90, 50, 90])
    [50.0, 90.0]
    """
    if not amounts:
        raise ParameterError("no amounts to prune by; give percent, such as 50 90")
    for percent in amounts:
        fraction(percent)
    return sorted({float(f"{percent:.10g}") for percent in amounts})


def write_rows(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Write the rows as a CSV file, atomically.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "sensitivity.csv"
    >>> write_rows(path, [Row("conv_1", 50.0, 144, 288, 422496, 0.25, 0.125)])
    >>> path.read_text().splitlines()[1]
    'conv_1,50,144,288,422496,0.25,0.125,'
    """
    write_table(
        path, [{**asdict(row), "amount_percent": f"{row.amount_percent:.10g}"} for row in rows]
    )


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows that `scan` wrote.

    Raises
    ------
    L3PruneError
        The file is missing, or a line is not as `scan` writes it; the message has its number.

    Examples
    --------
    >>> read_rows("/nowhere/sensitivity.csv")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: cannot read /nowhere/sensitivity.csv: No such file or directory
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except OSError as error:
        raise L3PruneError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise L3PruneError(f"{path} is not a CSV file: {error}") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        raise L3PruneError(
            f"{path} does not have the columns {','.join(COLUMNS)}; it is no table of sensitivities"
        )
    rows: list[Row] = []
    for number, values in enumerate(lines[1:], start=2):
        try:
            row = _row(values)
            if any((row.layer, row.amount_percent) == (r.layer, r.amount_percent) for r in rows):
                raise ValueError(f"{row.layer} at {row.amount_percent:g} % stands there twice")
        except ValueError as error:
            raise L3PruneError(
                f"{path} line {number}: {error}; delete the line to measure it again"
            ) from error
        rows.append(row)
    return rows


def _row(values: Sequence[str]) -> Row:
    if len(values) != len(COLUMNS):
        raise ValueError(f"{len(values)} values instead of {len(COLUMNS)}")
    layer, percent, left, of, weights, mse, relative, accuracy = values
    row = Row(
        layer,
        float(percent),
        int(left),
        int(of),
        int(weights),
        float(mse),
        float(relative),
        float(accuracy) if accuracy else None,
    )
    if (
        not (0 < row.amount_percent < 100 or (layer, row.amount_percent) == (UNPRUNED, 0))
        or not 0 < row.left <= row.of
        or row.weights_left < 1
        or not (0 <= row.mse < math.inf and 0 <= row.relative_mse < math.inf)
        or not (row.accuracy is None or 0 <= row.accuracy <= 1)
    ):
        raise ValueError(f"{','.join(values)} is out of range")
    return row


def curves(
    rows: Sequence[Row], layers: Sequence[str], left_out: Sequence[str] = ()
) -> dict[str, list[tuple[float, float]]]:
    """The rows as `by_sensitivity` takes them: (part of the layer that goes, loss) of each layer.

    The loss is the relative squared error; where the rows have accuracies, what is lost of the
    whole network's. Layers that were left out have the point at 0 alone, so that they stay whole.

    Raises
    ------
    L3PruneError
        A layer has no rows; accuracies are there in some rows and missing in others.

    Examples
    --------
    >>> curves([Row("a", 50.0, 1, 2, 9, 0.3, 0.1)], ["a"])
    {'a': [(0.0, 0.0), (0.5, 0.1)]}
    """
    base = next((row.accuracy for row in rows if row.layer == UNPRUNED), None)
    judged = [row for row in rows if row.layer != UNPRUNED]
    if len({row.accuracy is None for row in judged} | {base is None}) > 1:
        raise L3PruneError("some rows have an accuracy and others have none; measure all again")
    result: dict[str, list[tuple[float, float]]] = {}
    for layer in layers:
        own = [row for row in judged if row.layer == layer]
        if not own and layer not in left_out:
            raise L3PruneError(f"there are no rows of layer {layer}; measure it first")
        points = {0.0: 0.0}
        for row in own:
            # Of a small layer a small amount may be no filter at all.
            if row.left < row.of:
                lost = row.relative_mse
                if base is not None and row.accuracy is not None:
                    lost = base - row.accuracy
                points[1 - row.left / row.of] = lost
        result[layer] = sorted(points.items())
    return result


def plot(rows: Sequence[Row], path: str | os.PathLike[str], title: str = "") -> None:
    """Draw the relative error of each layer by amount as a PNG file; accuracies beside it.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "sensitivity.png"
    >>> plot([Row("conv_1", 50.0, 1, 2, 9, 0.3, 0.1)], path)
    >>> path.stat().st_size > 0
    True
    """
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row.layer for row in rows if row.layer != UNPRUNED))
    base = next((row.accuracy for row in rows if row.layer == UNPRUNED), None)
    figure = Figure(figsize=(7.5 if base is None else 12.5, 4.8), layout="constrained")
    panels = figure.subplots(1, 1 if base is None else 2, squeeze=False)[0]
    for number, layer in enumerate(layers):
        own = sorted((row for row in rows if row.layer == layer), key=lambda r: r.amount_percent)
        # Ten colours; shape and line tell neighbours and further tens apart.
        style: dict[str, Any] = {
            "color": f"C{number % 10}",
            "marker": "os^vDPX*<>"[number % 10],
            "linestyle": ("-", "--", ":")[number // 10 % 3],
            "markersize": 5,
            "linewidth": 1.4,
        }
        amounts = [row.amount_percent for row in own]
        # Nothing on the logarithm where nothing is lost.
        errors = [row.relative_mse or np.nan for row in own]
        panels[0].plot(amounts, errors, label=layer, **style)
        if base is not None:
            panels[1].plot(amounts, [100 * (row.accuracy or 0) for row in own], **style)
    panels[0].set(yscale="log", ylabel="squared error of the embedding / its variance")
    if base is not None:
        panels[1].axhline(100 * base, color="black", linestyle="--", linewidth=1)
        panels[1].set(ylabel="accuracy, % (dashed: unpruned)")
    for axes in panels:
        axes.set(xlabel="pruned of the layer, %")
        axes.grid(alpha=0.3)
    panels[0].set_title(title, fontsize=10, loc="left")
    figure.legend(loc="outside right center", fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
