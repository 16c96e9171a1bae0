"""Reports: what a network costs and how far its embedding is from another's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import tf_keras as keras

from l3prune import graph
from l3prune.files import atomic_write, write_json
from l3prune.networks import inference
from l3prune.sizes import checkpoint_bytes, packed_bytes
from l3prune.weights import fingerprint
from l3prune.windows import WindowSource, cached_targets


@dataclass(frozen=True)
class Report:
    """Rows of figures, one a network, in the order they were made.

    Attributes
    ----------
    rows : dict of str to dict
        Name of the network's state ("unpruned", "pruned", …) -> its figures by column.

    Examples
    --------
    >>> report = Report({"unpruned": {"macs": 2_000_000, "sparsity": 0.0}})
    >>> print(report)
              macs sparsity
    unpruned  2.0M   0.00 %
    """

    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def with_row(self, name: str, **figures: Any) -> Report:
        """A report with one row more, or with more columns in a row that exists."""
        return Report({**self.rows, name: {**self.rows.get(name, {}), **figures}})

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the rows, unrounded, as JSON."""
        write_json(path, dict(self.rows))

    def table(self) -> pd.DataFrame:
        """The rows, formatted for people."""
        columns = dict.fromkeys(column for row in self.rows.values() for column in row)
        frame = pd.DataFrame(
            {
                c: pd.Series([row.get(c) for row in self.rows.values()], dtype=object)
                for c in columns
            }
        ).set_axis(list(self.rows))
        for column in frame:
            frame[column] = frame[column].map(_formatter(str(column)))
        return frame

    def __str__(self) -> str:
        return self.table().to_string()


def _formatter(column: str) -> Callable[[Any], str]:
    def show(value: Any) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "–"
        if column == "accuracy_std" or column.endswith(("accuracy", "sparsity")):
            return f"{100 * value:.2f} %"
        if isinstance(value, (int, np.integer)):
            for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
                if value >= size:
                    return f"{value / size:.{2 if unit == 'G' else 1}f}{unit}"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return show


def measure(network: keras.Model) -> dict[str, Any]:
    """What a network costs.

    Returns
    -------
    figures : dict
        sparsity (fraction of zero convolution weights), nonzero (convolution weights), macs
        (dense, of one input), nonzero_macs, bytes (of the checkpoint) and packed_bytes (of the
        packed file); see `sizes`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> measure(create_network("sea64"))["macs"]
    122425344
    """
    total, nonzero = graph.count_kernel_weights(network)
    macs, nonzero_macs = graph.count_macs(network)
    return {
        "sparsity": 1 - nonzero / total,
        "nonzero": nonzero,
        "macs": macs,
        "nonzero_macs": nonzero_macs,
        "bytes": checkpoint_bytes(network),
        "packed_bytes": packed_bytes(network),
    }


def embedding_mse(
    network: keras.Model,
    teacher: keras.Model,
    windows: WindowSource,
    cache_dir: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    quiet: bool = False,
) -> float:
    """Mean squared difference of a network's embedding from its teacher's, over all windows.

    Parameters
    ----------
    network, teacher : keras.Model
        With waveform input and embeddings of one size.
    windows : WindowSource
        Best of recordings that neither training nor its early stopping heard.
    cache_dir : str or path-like
        Where the teacher's embeddings are kept.
    batch_size : int
    quiet : bool

    Returns
    -------
    mse : float
        In squared units of the embedding, a mean over windows and values.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> import tempfile
    >>> network = create_network("sea64")
    >>> class Noise:
    ...     sample_rate, fingerprint = 8000, "noise"
    ...     def __len__(self): return 3
    ...     def read(self, indices): return np.ones((len(indices), 1, 8000), np.float32)
    >>> embedding_mse(network, network, Noise(), tempfile.mkdtemp(), quiet=True)
    0.0
    """
    size = teacher.output_shape[1]
    infer = inference(teacher)
    key = fingerprint(teacher)
    targets = cached_targets(
        windows, infer, key, size, cache_dir, batch_size=batch_size, quiet=quiet
    )
    infer = inference(network)
    total = 0.0
    for start in range(0, len(windows), batch_size):
        indices = np.arange(start, min(start + batch_size, len(windows)))
        difference = infer(windows.read(indices)).astype(np.float64) - targets[indices]
        total += float(np.square(difference).sum())
    return total / targets.size


#: What a history is drawn by, the first that it has, and what that is called.
_TOLD = {
    "accuracy": "accuracy",
    "mse": "squared distance to the teacher",
    "loss": "loss",
}


def plot_history(history: list[dict[str, float]], path: str | os.PathLike[str]) -> None:
    """Draw training and validation by epoch as a PNG file: accuracy, the squared error of an
    embedding, or the loss.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "history.png"
    >>> plot_history([{"epoch": 1, "mse": 2.0, "val_mse": 3.0}], path)
    >>> path.stat().st_size > 0
    True
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    told = next(name for name in _TOLD if name in history[0])
    for key, label in ((told, "training"), (f"val_{told}", "validation")):
        axes.plot(epochs, [row[key] for row in history], "o-", markersize=3, label=label)
    axes.set(xlabel="epoch", ylabel=_TOLD[told], yscale="log" if told == "mse" else "linear")
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
