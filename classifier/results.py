"""What classifiers reached: on one fold, over folds and seeds; tables and figures of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l3prune.errors import ParameterError
from l3prune.files import atomic_write, write_json, write_table


@dataclass(frozen=True)
class FoldResult:
    """What one classifier reached: on clips of its test fold, and on rows while it trained.

    Rows are frames, or clips where the classifier sees statistics of clips.

    Attributes
    ----------
    test_fold : int
    valid_fold : int or None
        None: a part of the training folds validated.
    train_folds : tuple of int
    seed : int
    labels : tuple of str
    confusion : tuple of tuple of int, (classes, classes)
        Test clips: row = true class, column = predicted class.
    parameters : mapping
        Of the model, chosen by the search if there was one: its kind as `model`, and its recipe.
    train_accuracy : float
        On rows that the model was trained on.
    valid_accuracy : float
        On rows that it was not trained on. Where the model was trained again with them, that of
        the model before.
    train_loss, valid_loss : float or None
        The same of the loss, which includes the weight decay; None if it is no MLP.
    best_epoch, epochs : int or None
        The epoch whose weights were kept, from 1, and how many were run; None if it is no MLP.

    Examples
    --------
    >>> result = FoldResult(1, 3, (2,), 0, ("a", "b"), ((3, 1), (0, 2)), {}, 1, 0.9)
    >>> round(result.accuracy, 4), result.class_accuracy, result.average_class_accuracy
    (0.8333, (0.75, 1.0), 0.875)
    """

    test_fold: int
    valid_fold: int | None
    train_folds: tuple[int, ...]
    seed: int
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    parameters: Mapping[str, Any]
    train_accuracy: float
    valid_accuracy: float
    train_loss: float | None = None
    valid_loss: float | None = None
    best_epoch: int | None = None
    epochs: int | None = None

    @property
    def accuracy(self) -> float:
        """Fraction of test clips whose class was predicted."""
        counts = np.array(self.confusion)
        return float(np.trace(counts) / counts.sum())

    @property
    def class_accuracy(self) -> tuple[float | None, ...]:
        """The same for the clips of each class; None for a class without test clips."""
        return tuple(row["accuracy"] for row in class_table(self.labels, self.confusion))

    @property
    def average_class_accuracy(self) -> float:
        """Mean over the classes with test clips."""
        return float(np.mean([value for value in self.class_accuracy if value is not None]))

    def to_json(self) -> dict[str, Any]:
        """Every attribute and metric, as JSON has them."""
        return {
            "accuracy": self.accuracy,
            "average_class_accuracy": self.average_class_accuracy,
            "class_accuracy": dict(zip(self.labels, self.class_accuracy, strict=True)),
            **asdict(self),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FoldResult:
        """The result that `to_json` wrote."""
        values = {name: value[name] for name in cls.__dataclass_fields__}
        for name in ("train_folds", "labels"):
            values[name] = tuple(values[name])
        values["confusion"] = tuple(tuple(row) for row in values["confusion"])
        return cls(**values)


@dataclass(frozen=True)
class CrossValidation:
    """Results over folds and seeds, summed up.

    Attributes
    ----------
    results : tuple of FoldResult
        All with the same labels. They may come from features that differ by fold.

    Raises
    ------
    ParameterError
        There are no results, or their labels differ.

    Examples
    --------
    >>> one = FoldResult(1, 3, (2,), 0, ("a", "b"), ((3, 1), (0, 2)), {}, 1, 0.9)
    >>> two = FoldResult(2, 1, (3,), 0, ("a", "b"), ((4, 0), (2, 0)), {}, 1, 0.9)
    >>> print(CrossValidation((one, two)).table())
    2 folds x 1 seeds, percent    mean    std
    clip accuracy                 75.0   11.8
    average class accuracy        68.8   26.5
    validation accuracy           90.0    0.0
    training accuracy            100.0    0.0
    class a                       87.5   17.7
    class b                       50.0   70.7
    """

    results: tuple[FoldResult, ...]

    def __post_init__(self) -> None:
        if not self.results:
            raise ParameterError("no results to sum up; train at least one fold")
        if len({result.labels for result in self.results}) > 1:
            raise ParameterError("the results have different labels; sum up each corpus apart")

    @property
    def metrics(self) -> dict[str, list[float]]:
        """Metric -> its values, one per result; a class that a test fold lacks has fewer."""
        values = {
            "clip accuracy": [result.accuracy for result in self.results],
            "average class accuracy": [result.average_class_accuracy for result in self.results],
            "validation accuracy": [result.valid_accuracy for result in self.results],
            "training accuracy": [result.train_accuracy for result in self.results],
        }
        for i, label in enumerate(self.results[0].labels):
            accuracies = [result.class_accuracy[i] for result in self.results]
            values[f"class {label}"] = [value for value in accuracies if value is not None]
        return values

    @property
    def accuracy(self) -> float:
        """Mean clip accuracy over folds and seeds."""
        return float(np.mean([result.accuracy for result in self.results]))

    def summary(self) -> list[dict[str, Any]]:
        """metric, mean, std and n (values) of each metric.

        The standard deviation is the sample's (n - 1), over folds and seeds alike; 0 for one value.
        A class without any test clip has no row.
        """
        return [
            {
                "metric": metric,
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
                "n": len(values),
            }
            for metric, values in self.metrics.items()
            if values
        ]

    def folds(self) -> list[dict[str, Any]]:
        """One row per fold and seed: its accuracies, and the parameters of its model."""
        return [
            {
                "test_fold": result.test_fold,
                "seed": result.seed,
                "accuracy": result.accuracy,
                "average_class_accuracy": result.average_class_accuracy,
                "valid_accuracy": result.valid_accuracy,
                "train_accuracy": result.train_accuracy,
                "best_epoch": result.best_epoch,
                **result.parameters,
            }
            for result in self.results
        ]

    def table(self) -> str:
        """The summary in percent, as text."""
        rows = self.summary()
        folds = len({result.test_fold for result in self.results})
        seeds = len({result.seed for result in self.results})
        title = f"{folds} folds x {seeds} seeds, percent"
        width = max(len(title), *(len(row["metric"]) for row in rows)) + 1
        lines = [f"{title:<{width}} {'mean':>6} {'std':>6}"]
        for row in rows:
            mean, std = 100 * row["mean"], 100 * row["std"]
            lines.append(f"{row['metric']:<{width}} {mean:6.1f} {std:6.1f}")
        return "\n".join(lines)

    def save(self, output_dir: str | os.PathLike[str]) -> None:
        """Write all of it as files.

        `cv.json` (summary, summed confusion, every result), `cv.csv` (summary), `folds.csv`, and
        what `save_confusion` writes of the summed confusion.
        """
        output_dir = Path(output_dir)
        confusion = np.sum([result.confusion for result in self.results], axis=0)
        summary = self.summary()
        write_json(
            output_dir / "cv.json",
            {
                "labels": self.results[0].labels,
                "summary": summary,
                "confusion": confusion,
                "results": [result.to_json() for result in self.results],
            },
        )
        write_table(output_dir / "cv.csv", summary)
        write_table(output_dir / "folds.csv", self.folds())
        save_confusion(output_dir, self.results[0].labels, confusion)


def class_table(labels: Sequence[str], confusion: Any) -> list[dict[str, Any]]:
    """Accuracy (recall), precision and F1 of each class.

    Parameters
    ----------
    labels : sequence of str
    confusion : array-like of int, (classes, classes)
        Row = true class, column = predicted class.

    Returns
    -------
    rows : list of dict
        class, clips, accuracy, precision, f1. None where the definition divides by 0: no clip of
        the class, none predicted to be it, neither of both.

    Examples
    --------
    >>> class_table(("a", "b"), ((3, 1), (0, 2)))[1]["precision"]
    0.6666666666666666
    """
    counts = np.array(confusion)

    def ratio(part: int, whole: int) -> float | None:
        return float(part / whole) if whole else None

    rows = []
    for i, label in enumerate(labels):
        hits, true, predicted = counts[i, i], counts[i].sum(), counts[:, i].sum()
        rows.append(
            {
                "class": label,
                "clips": int(true),
                "accuracy": ratio(hits, true),
                "precision": ratio(hits, predicted),
                "f1": ratio(2 * hits, true + predicted),
            }
        )
    return rows


def save_confusion(
    output_dir: str | os.PathLike[str], labels: Sequence[str], confusion: Any
) -> None:
    """Write `confusion.csv`, `confusion.png` and `classes.csv` (see `class_table`).

    Parameters
    ----------
    output_dir : str or path-like
    labels : sequence of str
    confusion : array-like of int, (classes, classes)
        Row = true class, column = predicted class.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_confusion(folder, ("dog", "rain"), ((3, 1), (0, 2)))
    >>> (folder / "confusion.csv").read_text().splitlines()
    ['true class,predicted dog,predicted rain', 'dog,3,1', 'rain,0,2']
    """
    output_dir, counts = Path(output_dir), np.array(confusion)
    columns = [f"predicted {label}" for label in labels]
    rows = [
        {"true class": label, **dict(zip(columns, row, strict=True))}
        for label, row in zip(labels, counts.tolist(), strict=True)
    ]
    write_table(output_dir / "confusion.csv", rows)
    write_table(output_dir / "classes.csv", class_table(labels, counts))
    _draw(output_dir / "confusion.png", labels, counts)


def _draw(path: Path, labels: Sequence[str], counts: np.ndarray) -> None:
    # Figure, and not pyplot: no display is looked for, no global state is touched.
    from matplotlib.figure import Figure

    n = len(labels)
    # A cell must hold three digits: 0.45 inch in 10 pt for few classes, 0.26 in 6 pt for fifty.
    cell, size = (0.45, 10) if n <= 15 else (0.26, 6)
    margin = 0.085 * size / 10 * max(len(label) for label in labels) + 0.8
    side = n * cell + margin
    figure = Figure(figsize=(max(side, 3.5), max(side, 3.2)), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts):
        colour = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=size)
    names = [label.replace("_", " ") for label in labels]
    axes.set_xticks(range(n), names, rotation=90, fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("clips; colour: share of the true class", fontsize=max(size, 8))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
