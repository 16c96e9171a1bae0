"""What networks cost, layer by layer, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras as keras

from l3prune import graph, sizes, surgery
from l3prune.channels import named_layers
from l3prune.checks import check_whole
from l3prune.complexity import (
    CONVENTIONS,
    LayerComplexity,
    layer_complexities,
    peak_activation_bytes,
)
from l3prune.errors import ParameterError
from l3prune.evaluation import Report
from l3prune.files import atomic_write, write_json
from l3prune.sparse import SparseModel
from l3prune.sparse.convert import program_of
from l3prune.sparse.plan import mac_density
from l3prune.timing import CALLS, check_sizes, latency
from l3prune.training import environment

#: The figures of a whole network, and what people call them.
FIGURES = {
    "parameters": "parameters",
    "trainable": "trainable parameters",
    "weights": "convolution weights",
    "nonzero": "convolution weights, not zero",
    "sparsity": "sparsity",
    "macs": "MACs",
    "nonzero_macs": "MACs of weights that are not zero",
    "thop_2019": "MACs as THOP counted in July 2019",
    "thop": "MACs as THOP counts today",
    "peak_activation_bytes": "peak activation memory, bytes",
    "bytes": "checkpoint, bytes",
    "litert_bytes": "LiteRT file, bytes",
    "litert_gzip_bytes": "LiteRT file gzipped, bytes",
    "packed_bytes": "packed file, bytes",
    "packed_int8_bytes": "packed file of int8 weights, bytes",
    "ms": "milliseconds, median",
    "ms_min": "milliseconds, least",
    "sparse_ms": "milliseconds of the sparse engine, median",
    "sparse_ms_min": "milliseconds of the sparse engine, least",
}

#: Behind a network's name: its times by the sparse engine.
_BY_SPARSE = "by the sparse engine"

_NOTES = (
    "The first network is what the others are compared with. MACs are multiply-accumulates for one "
    "input: one for each weight of a convolution or dense layer and place where it is used. "
    "Ordinary engines compute those of zero weights too. THOP, a package for PyTorch, counts some "
    "other layers as well; compare a published count only with one by the same rule.",
    "Times of the sparse engine are of networks with zeros, and compared with the first network's "
    "time in TensorFlow. Sparsity is the fraction of convolution weights that are zero. Peak "
    "activation memory is of float32 values, for one input. The checkpoint is the file that "
    "l3prune writes, gzipped inside; the LiteRT file is float32 and, like the times, without the "
    "front end. k, M and G are thousands, millions and billions.",
)


@dataclass(frozen=True)
class LayerFigures(LayerComplexity):
    """What one layer costs, at one of the places where it is called, and which weights it has.

    Attributes
    ----------
    filters : int or None
        Of a convolution; units of a dense layer.
    weights, nonzero : int
        Kernel weights, and those that are not zero; 0 where a shared layer is called again.
    nonzero_macs : int
        `macs` without those of zero weights.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> row = layer_figures(create_network("sea64"))[2]
    >>> row.name, row.filters, row.weights, row.macs
    ('conv_1', 32, 288, 921600)
    """

    filters: int | None
    weights: int
    nonzero: int
    nonzero_macs: int


def layer_figures(network: keras.Model) -> list[LayerFigures]:
    """Every layer of a functional network, in the order of computation.

    Raises
    ------
    ParameterError
        The network is not functional.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> sum(row.weights for row in layer_figures(create_network("sea64")))
    396576
    """
    layers = dict(named_layers(network))
    rows = []
    seen = set()
    for row in layer_complexities(network):
        layer = layers[row.name]
        kernels = [w.numpy() for w in layer.weights if "kernel" in surgery.short_name(w)]
        weights = sum(kernel.size for kernel in kernels)
        nonzero = sum(int(np.count_nonzero(kernel)) for kernel in kernels)
        again = row.name in seen
        seen.add(row.name)
        rows.append(
            LayerFigures(
                **vars(row),
                filters=getattr(layer, "filters", None) or getattr(layer, "units", None),
                weights=0 if again else weights,
                nonzero=0 if again else nonzero,
                # All weights of a layer are used at equally many places.
                nonzero_macs=row.macs // max(weights, 1) * nonzero,
            )
        )
    return rows


@dataclass(frozen=True)
class Comparison:
    """Figures of networks, of which the first is what the others are compared with.

    Attributes
    ----------
    totals : dict of str to dict
        Network -> `FIGURES`, unrounded. The bytes of a network that l3prune did not make, and so
        cannot save, are None; milliseconds are there only if they were measured.
    layers : dict of str to list of LayerFigures
    milliseconds : dict of str to np.ndarray, (rounds,) float64
        See `timing.latency`.
    timing : dict
        How they were measured: rounds, calls, batch_size, threads (0: one a processor), cpus,
        devices.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> found = compare({"SEA-64": create_network("sea64"), "SEA-512": create_network("sea512")})
    >>> round(found.ratio("SEA-512", "nonzero"), 2)
    11.81
    """

    totals: Mapping[str, Mapping[str, Any]]
    layers: Mapping[str, Sequence[LayerFigures]]
    milliseconds: Mapping[str, np.ndarray] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """The first network's name."""
        return next(iter(self.totals))

    def ratio(self, name: str, figure: str) -> float | None:
        """A network's figure over the first network's; None where there is none to give.

        The sparse engine's times are compared with the first network's in TensorFlow.
        """
        value = self.totals[name].get(figure)
        base = self.totals[self.baseline].get(figure.removeprefix("sparse_"))
        return None if figure == "sparsity" or value is None or not base else value / base

    def to_json(
        self, path: str | os.PathLike[str], origin: Mapping[str, Any] | None = None
    ) -> None:
        """Write everything, unrounded, as JSON; `origin` has JSON values to write besides."""
        networks = {
            name: {
                "totals": totals,
                "ratios": {figure: self.ratio(name, figure) for figure in totals},
                "milliseconds": self.milliseconds.get(name),
                "layers": [asdict(row) for row in self.layers[name]],
            }
            for name, totals in self.totals.items()
        }
        write_json(
            path,
            {
                "baseline": self.baseline,
                **(origin or {}),
                "timing": self.timing or None,
                "versions": environment(),
                "networks": networks,
            },
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """Title -> texts: the totals, then a row for each layer that has a kernel."""
        return {
            "Totals": self._total_table(),
            "Output of each layer, its filters last": self._layer_table(
                lambda row: "×".join(map(str, row.output_shape)), kinds=True
            ),
            "Kernel weights that are not zero": self._layer_table(
                lambda row: (
                    f"{row.weights:,}"
                    if row.nonzero == row.weights
                    else f"{row.nonzero:,} of {row.weights:,}"
                )
            ),
            "MACs": self._layer_table(lambda row: f"{row.macs:,}"),
        }

    def markdown(self) -> str:
        """The tables, with what the figures mean."""
        first, *others = self.tables().items()
        parts = [f"# What networks cost: {', '.join(self.totals)}", *_section(*first), *_NOTES]
        if self.timing:
            parts.append(self._timed())
        for each in others:
            parts += _section(*each)
        return "\n\n".join(parts) + "\n"

    def __str__(self) -> str:
        (_, first), *others = self.tables().items()
        parts = [first.to_string(), *([self._timed()] if self.timing else [])]
        return "\n\n".join(parts + [f"{title}:\n{table.to_string()}" for title, table in others])

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw weights and MACs by layer, and totals beside the first network's, as a PNG file."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        names = list(self.totals)
        shown = self._shown()
        ratios = [
            figure
            for figure in FIGURES
            if any(self.ratio(name, figure) is not None for name in names[1:])
        ]
        groups = max(len(shown), len(ratios))
        # No picture has more than 65,536 pixels a side.
        height = min(1.5 + groups * (0.15 + 0.17 * len(names)), 500)
        figure = Figure(figsize=(5 if not ratios else 15, height), layout="constrained")
        panels = figure.subplots(1, 3 if ratios else 2)
        for axes, title, whole, part in (
            (panels[0], "kernel weights (pale: zero)", "weights", "nonzero"),
            (panels[1], "MACs (pale: of zero weights)", "macs", "nonzero_macs"),
        ):
            bars = {
                colour: [
                    (getattr(rows[layer], whole), getattr(rows[layer], part))
                    if layer in rows
                    else None
                    for layer in shown
                ]
                for colour, rows in enumerate(self._by_name().values())
            }
            _draw(axes, shown, bars, _short)
            axes.set_title(title, fontsize=10)
        panels[1].tick_params(labelleft=False)
        if ratios:
            bars = {}
            for colour, name in enumerate(names):
                values = [self.ratio(name, each) for each in ratios]
                bars[colour] = [None if v is None else (100 * v, 100 * v) for v in values]
            del bars[0]  # all 100 %
            _draw(panels[2], [FIGURES[each] for each in ratios], bars, _percent)
            panels[2].axvline(100, color="C0", linestyle="--", linewidth=1)
            panels[2].set_title(f"of {_drawn(self.baseline)} (dashed)", fontsize=10)
        figure.legend(
            [Patch(color=f"C{colour % 10}") for colour in range(len(names))],
            [_drawn(name) for name in names],
            loc="outside upper center",
            ncols=min(len(names), 4),
        )
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=120)

    def _by_name(self) -> dict[str, dict[str, LayerFigures]]:
        """Network -> layer -> its row; the calls of a shared layer as one row."""
        return {name: _together(rows) for name, rows in self.layers.items()}

    def _shown(self) -> list[str]:
        """The layers that have a kernel in any of the networks, in the order of computation."""
        tables = list(self._by_name().values())
        return [
            name
            for name in merge_orders(tables)
            if any(name in rows and rows[name].weights for rows in tables)
        ]

    def _layer_table(
        self, text: Callable[[LayerFigures], str], kinds: bool = False
    ) -> pd.DataFrame:
        shown, tables = self._shown(), self._by_name()
        columns = [
            [text(rows[layer]) if layer in rows else "–" for layer in shown]
            for rows in tables.values()
        ]
        names = list(tables)
        if kinds:
            each = [[rows[n].kind for rows in tables.values() if n in rows] for n in shown]
            columns.insert(0, [", ".join(dict.fromkeys(kinds)) for kinds in each])
            names.insert(0, "kind")
        return pd.DataFrame(list(zip(*columns, strict=True)), index=shown, columns=names)

    def _total_table(self) -> pd.DataFrame:
        texts = Report(self.totals).table()
        columns, names = [], []
        for name in self.totals:
            columns.append(list(texts.loc[name]))
            names.append(name)
            if name != self.baseline:
                ratios = [self.ratio(name, figure) for figure in texts]
                columns.append(["" if r is None else f"{100 * r:,.1f} %" for r in ratios])
                names.append(f"of {self.baseline}")
        return pd.DataFrame(
            list(zip(*columns, strict=True)), [FIGURES[figure] for figure in texts], names
        )

    def _timed(self) -> str:
        timing = self.timing
        return (
            "Milliseconds are for one input, of audio networks without their front end: "
            f"{timing['rounds']} rounds, in each of which every network makes {timing['calls']} "
            f"calls with batches of {timing['batch_size']}. "
            f"Devices: {', '.join(timing['devices'])}; processors: {timing['cpus']}; "
            f"threads: {timing['threads'] or 'as TensorFlow chooses'}."
        )


def compare(
    networks: Mapping[str, keras.Model],
    *,
    litert: bool = False,
    rounds: int = 0,
    batch_size: int = 1,
    quiet: bool = True,
) -> Comparison:
    """What networks cost, side by side.

    Parameters
    ----------
    networks : dict of str to keras.Model
        By the names that are shown; the others are compared with the first. Functional, with
        inputs of known sizes. They may be of different families: layers are matched by name.
    litert : bool
        Convert each to LiteRT for its bytes, which takes some seconds.
    rounds, batch_size, quiet
        See `timing.latency`. 0 rounds measure no times.

    Returns
    -------
    comparison : Comparison

    Raises
    ------
    ParameterError
        No networks; one that is not functional, whose input has unknown sizes, or that has no layer
        with a kernel; or as `timing.latency`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> found = compare({"SEA-64": create_network("sea64")})
    >>> found.totals["SEA-64"]["peak_activation_bytes"]
    819200
    """
    if not networks:
        raise ParameterError("no networks to compare; give at least one")
    check_whole("rounds", rounds, 0)
    check_whole("batch_size", batch_size, 1)
    totals, layers = {}, {}
    for name, network in networks.items():
        check_sizes(name, network)
        layers[name] = layer_figures(network)
        if not any(row.weights for row in layers[name]):
            raise ParameterError(f"network {name} has no layer with a kernel: nothing to compare")
        totals[name] = _total(network, layers[name], litert)
    if not rounds:
        return Comparison(totals, layers)
    sparse = _sparse_models(networks)
    labels = {name: f"{name} {_BY_SPARSE}" for name in sparse}
    both = {**networks, **{labels[name]: model for name, model in sparse.items()}}
    times = latency(both, rounds=rounds, batch_size=batch_size, quiet=quiet)
    for name in networks:
        for prefix, key in (("", name), ("sparse_", labels.get(name))):
            if key is not None:
                totals[name][f"{prefix}ms"] = float(np.median(times[key]))
                totals[name][f"{prefix}ms_min"] = float(times[key].min())
    timing = {
        "rounds": rounds,
        "calls": CALLS,
        "batch_size": batch_size,
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "cpus": os.cpu_count(),
        "devices": [device.device_type for device in tf.config.list_physical_devices()],
    }
    return Comparison(totals, layers, times, timing)


def _sparse_models(networks: Mapping[str, keras.Model]) -> dict[str, SparseModel]:
    """Sparse engines of the networks that have zeros and that it knows; of as many threads."""
    threads = tf.config.threading.get_intra_op_parallelism_threads() or None
    found = {}
    for name, network in networks.items():
        try:
            program = program_of(network)
            if mac_density(program) < 1:
                found[name] = SparseModel(program, threads=threads)
        except ParameterError:
            continue
    return found


def merge_orders(orders: Iterable[Iterable[str]]) -> list[str]:
    """Names of several lists as one: the first list's order, others behind their predecessors.

    Examples
    --------
    >>> merge_orders([["conv_1", "conv_3"], ["conv_1", "conv_2", "conv_3", "dense"]])
    ['conv_1', 'conv_2', 'conv_3', 'dense']
    """
    merged: list[str] = []
    for order in orders:
        place = 0
        for name in order:
            if name not in merged:
                merged.insert(place, name)
            place = merged.index(name) + 1
    return merged


def _total(network: keras.Model, rows: Sequence[LayerFigures], litert: bool) -> dict[str, Any]:
    def total(figure: str) -> int:
        return sum(getattr(row, figure) for row in rows)

    weights, nonzero = graph.count_kernel_weights(network)
    converted = {}
    if litert:
        whole, gzipped = sizes.litert_bytes(network)
        converted = {"litert_bytes": whole, "litert_gzip_bytes": gzipped}
    return {
        "parameters": total("parameters"),
        "trainable": total("trainable"),
        "weights": weights,
        "nonzero": nonzero,
        "sparsity": 1 - nonzero / weights if weights else None,
        "macs": total("macs"),
        "nonzero_macs": total("nonzero_macs"),
        **{convention: total(convention) for convention in CONVENTIONS if convention != "macs"},
        "peak_activation_bytes": peak_activation_bytes(network),
        "bytes": sizes.checkpoint_bytes(network),
        **converted,
        "packed_bytes": sizes.packed_bytes(network),
        "packed_int8_bytes": sizes.packed_bytes(network, "int8"),
    }


def _together(rows: Sequence[LayerFigures]) -> dict[str, LayerFigures]:
    found: dict[str, LayerFigures] = {}
    for row in rows:
        if row.name in found:
            first = found[row.name]
            sums = {
                figure: getattr(first, figure) + getattr(row, figure)
                for figure in ("nonzero_macs", *CONVENTIONS)
            }
            row = replace(first, **sums)
        found[row.name] = row
    return found


def _section(title: str, table: pd.DataFrame) -> list[str]:
    """A heading and a table in Markdown."""
    rows = [["", *table.columns], *([label, *row] for label, *row in table.itertuples(name=None))]
    lines = ["| " + " | ".join(str(t).replace("|", "\\|") for t in row) + " |" for row in rows]
    left = 1 + (table.columns[0] == "kind")
    lines.insert(1, "|" + "---|" * left + "---:|" * (len(rows[0]) - left))
    return [f"## {title}", "\n".join(lines)]


def _draw(
    axes, labels: Sequence[str], bars: Mapping[int, Sequence], text: Callable[[float], str]
) -> None:
    """Groups of horizontal bars: for each colour a list of (whole, part) or None."""
    thickness = 0.84 / len(bars)
    for place, (colour, values) in enumerate(bars.items()):
        for number, value in enumerate(values):
            y = number - 0.42 + (place + 0.5) * thickness
            whole, part = value or (0, 0)
            axes.barh(y, whole, thickness, color=f"C{colour % 10}", alpha=0.3)
            axes.barh(y, part, thickness, color=f"C{colour % 10}")
            label = text(part) if part == whole else f"{text(part)} of {text(whole)}"
            axes.annotate(
                "–" if value is None else label,
                (whole, y),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.margins(x=0.25)  # for the numbers
    axes.xaxis.set_major_formatter(lambda value, _: text(value))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _short(count: float) -> str:
    """A count in thousands, millions or billions."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(places=1, sep="").format_eng(count).replace(".0", "")


def _percent(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0") + " %"


def _drawn(name: str) -> str:
    """A name as Matplotlib takes it literally: no formula, and never left out of a legend."""
    return "\u200b" + name.replace("$", r"\$")
