"""Pruning one layer alone, by many amounts, and sharing a budget out by what that does."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from tqdm import tqdm

from l3prune import graph, surgery
from l3prune.allocation import (
    ALLOCATIONS,
    LayerCost,
    Rule,
    check_choice,
    share_out,
    total_of,
)
from l3prune.budget import COUNTED, MODES, Budget, kept, measure, meet, outcome
from l3prune.checks import is_integer
from l3prune.complexity import layer_costs
from l3prune.curves import UNPRUNED, Row, fraction, read_rows, tidy, write_rows
from l3prune.errors import L3PruneError, ParameterError
from l3prune.filterwise import plan_filterwise
from l3prune.plan import PruningPlan, plan_layerwise, score
from l3prune.windows import WindowSource

#: Mode -> its criterion unless another is asked for.
CRITERION = {"layerwise": "magnitude", "filterwise": "l1"}

#: What a judge says of a network: mse, relative_mse and, if it likes, accuracy.
Judge = Callable[[keras.Model], Mapping[str, float]]


class Candidates:
    """The networks in which one layer is pruned and all others are whole.

    Parameters
    ----------
    network : keras.Model
        Functional. It is not changed.
    mode : str
        layerwise: weights are set to zero. filterwise: filters are removed by surgery.
    criterion : str or None
        What is kept is highest in it. None takes magnitude, or l1 for filters.

    Attributes
    ----------
    layers : tuple of str
        All convolutions, in the network's order.
    left_out : tuple of str
        Those whose filters are the embedding's own values, filterwise: the values that stay do not
        change and those that go cannot be compared, so these layers stay whole.
    costs : list of LayerCost
        Of these, and of the layers that are not pruned but read them.

    Raises
    ------
    ParameterError
        The criterion scores filters where weights go, or the reverse; layers only lose filters
        together; or as `layer_costs`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> candidates = Candidates(create_network("sea64"), "filterwise")
    >>> candidates.left_out, candidates.count("conv_2", 75)
    (('audio_embedding_layer',), (8, 32))
    """

    def __init__(
        self, network: keras.Model, mode: str = "layerwise", criterion: str | None = None
    ) -> None:
        check_choice("mode", mode, MODES)
        self.network = network
        self.mode = mode
        self.criterion = CRITERION[mode] if criterion is None else criterion
        self.weights = graph.conv_weights(network)
        self.costs = layer_costs(network)
        self.layers = tuple(self.weights)
        self.left_out: tuple[str, ...] = ()
        self._held = graph.masks(network)
        self._scores = score(self.weights, self.criterion, filters=mode == "filterwise")
        of_filters = next(iter(self._scores.values())).ndim == 1
        if of_filters != (mode == "filterwise"):
            raise ParameterError(
                f"criterion {self.criterion} scores {'filters' if of_filters else 'weights'}, "
                f"which mode {mode} does not prune; take {CRITERION[mode]}, or the other mode"
            )
        if mode == "filterwise":
            groups = graph.filter_groups(network)
            for group in groups:
                if len(group.filters) > 1 and group.filters.keys() & self.weights.keys():
                    raise ParameterError(
                        f"layers {' and '.join(group.filters)} lose filters together, and "
                        "sensitivity is of one layer at a time; use mode layerwise"
                    )
            self.left_out = tuple(
                name for group in groups if group.in_output for name in group.filters
            )
            self._places = {
                name: places for group in groups for name, places in group.filters.items()
            }
        else:
            # One copy whose kernels change: a new network for each would be compiled each time.
            self._copy = surgery.apply_masks(network, PruningPlan({}))
            self._kernels = {
                name: layer.kernel for name, layer in graph.convolutions(self._copy).items()
            }
            self._changed: str | None = None

    @property
    def scanned(self) -> tuple[str, ...]:
        """The layers that are pruned, one at a time."""
        return tuple(name for name in self.layers if name not in self.left_out)

    def plan(self, layer: str, percent: float) -> PruningPlan:
        """Which weights or filters of this layer stay.

        Raises
        ------
        ParameterError
            The amount is not in percent, or leaves the layer nothing.
        """
        part = fraction(percent)
        if self.mode == "filterwise":
            return plan_filterwise({layer: self._scores[layer]}, ratio=part, places=self._places)
        plan = plan_layerwise({layer: self.weights[layer]}, part, self.criterion)
        return self._with_held(plan)

    def count(self, layer: str, percent: float) -> tuple[int, int]:
        """Weights or filters of the layer that stay, and that it has."""
        if layer == UNPRUNED:
            by_filter = self.mode == "filterwise"
            total = total_of("filters" if by_filter else "sparsity", self.costs)
            return total, total
        mask = self.plan(layer, percent)[layer]
        return int(mask.sum()), mask.size

    def counts(self, amounts: Sequence[float]) -> dict[tuple[str, float], tuple[int, int]]:
        """`count` of all candidates: the whole network, then layer after layer.

        Raises
        ------
        ParameterError
            An amount is not in percent, or leaves a layer nothing.
        """
        keys = [(UNPRUNED, 0.0)]
        keys += [(layer, percent) for layer in self.scanned for percent in tidy(amounts)]
        return {key: self.count(*key) for key in keys}

    def make(self, layer: str, percent: float) -> keras.Model:
        """The network with this layer pruned; layerwise, it is good until the next is made."""
        if self.mode == "filterwise":
            if layer == UNPRUNED:
                return self.network
            return surgery.remove_filters(self.network, self.plan(layer, percent))
        if self._changed is not None:
            self._kernels[self._changed].assign(self.weights[self._changed].kernel)
            self._changed = None
        if layer != UNPRUNED:
            mask = self.plan(layer, percent)[layer]
            self._kernels[layer].assign(np.where(mask, self.weights[layer].kernel, 0))
            self._changed = layer
        return self._copy

    def stay(self, amounts: Sequence[float]) -> dict[str, int]:
        """What stays of each layer when all are pruned at once: percent of weights that go, or
        numbers of filters that stay, as the command line of pruning takes them."""
        if self.mode == "filterwise":
            counts = [int(count) for count in amounts]
            plan = plan_filterwise(self._scores, counts=counts)
        else:
            each = [percent / 100 for percent in amounts]
            plan = self._with_held(plan_layerwise(self.weights, each, self.criterion))
        return {layer: int(mask.sum()) for layer, mask in plan.items()}

    def _with_held(self, plan: PruningPlan) -> PruningPlan:
        return plan & PruningPlan({name: self._held[name] for name in plan if name in self._held})


class Spread:
    """Some windows of a source, evenly spread over it.

    Parameters
    ----------
    source : WindowSource
    most : int
        How many at most; 0 for all.

    Attributes
    ----------
    fingerprint : str
        Of the samples themselves: the same recordings in another folder are the same windows.

    Examples
    --------
    >>> class Ramp:
    ...     sample_rate, fingerprint = 1, "ramp"
    ...     def __len__(self): return 9
    ...     def read(self, indices): return np.float32(indices)[:, None, None]
    >>> Spread(Ramp(), 3).read(np.arange(3)).ravel().tolist()
    [1.0, 4.0, 7.0]
    """

    def __init__(self, source: WindowSource, most: int) -> None:
        if not is_integer(most) or most < 0:
            raise ParameterError(f"max_windows={most!r} is not a whole number from 0 (all) on")
        self._source = source
        self.sample_rate = source.sample_rate
        count = min(most or len(source), len(source))
        # The middles of equal parts.
        self._indices = (2 * np.arange(count) + 1) * len(source) // (2 * count)
        digest = hashlib.sha256(str(count).encode())
        for start in range(0, count, 64):
            digest.update(self.read(np.arange(start, min(start + 64, count))).tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Windows (len(indices), 1, sample_rate) float32."""
        return self._source.read(self._indices[indices])

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """A uniform permutation."""
        return generator.permutation(len(self))


def scan(
    candidates: Candidates,
    amounts: Sequence[float],
    judge: Judge,
    path: str | os.PathLike[str],
    *,
    quiet: bool = False,
) -> list[Row]:
    """Judge every layer pruned by every amount, and the network as it is.

    Each row is in the file as soon as it is known; rows that are there already are not measured
    again. The file is at all times a whole one.

    Parameters
    ----------
    candidates : Candidates
    amounts : sequence of float
        Percent, above 0 and below 100.
    judge : callable, network -> mapping
        With mse, relative_mse and perhaps accuracy.
    path : str or path-like
        A CSV file.
    quiet : bool
        No progress bar.

    Returns
    -------
    rows : list of Row
        Of the whole file, in its order.

    Raises
    ------
    ParameterError
        An amount is out of range or leaves a layer nothing.
    L3PruneError
        The file is damaged or does not belong to these candidates; a judgement is not finite.

    Examples
    --------
    >>> import tempfile
    >>> from l3prune.networks import create_network
    >>> candidates = Candidates(create_network("sea64", filters=[4] * 8))
    >>> judge = lambda network: {"mse": 2.0, "relative_mse": 1.0}
    >>> rows = scan(candidates, [50], judge, Path(tempfile.mkdtemp()) / "s.csv", quiet=True)
    >>> len(rows), rows[1].layer, rows[1].left
    (9, 'conv_1', 17)
    """
    counts = candidates.counts(amounts)
    rows = read_rows(path) if Path(path).exists() else []
    for row in rows:
        key = (row.layer, row.amount_percent)
        if row.layer not in (UNPRUNED, *candidates.scanned) or (
            key in counts and counts[key] != (row.left, row.of)
        ):
            raise L3PruneError(
                f"{path}: {row.left} of {row.of} left of layer {row.layer} at "
                f"{row.amount_percent:g} % is not of this network; delete the file to measure again"
            )
    done = {(row.layer, row.amount_percent) for row in rows}
    # Which weights or filters stay is told by their number: small layers repeat themselves.
    known = {(row.layer, row.left): row for row in rows}
    for layer, percent in tqdm(
        [key for key in counts if key not in done],
        "sensitivity",
        total=len(counts),
        initial=sum(key in done for key in counts),
        unit="network",
        disable=quiet or None,
    ):
        left, of = counts[layer, percent]
        if (layer, left) in known:
            row = known[layer, left]
            row = Row(**{**asdict(row), "amount_percent": percent})
        else:
            network = candidates.make(layer, percent)
            figures = {name: float(value) for name, value in judge(network).items()}
            if not all(map(math.isfinite, figures.values())):
                raise L3PruneError(
                    f"layer {layer} pruned by {percent:g} %: the embedding is not finite; check "
                    "the network and the recordings"
                )
            weights = graph.count_kernel_weights(network)[1]
            row = Row(layer, percent, left, of, weights, **figures)
        known[layer, left] = row
        rows.append(row)
        write_rows(path, rows)
    return rows


def allocate(
    candidates: Candidates,
    budget: Budget,
    allocation: str,
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> dict[str, Any]:
    """Amounts for all layers at once with which a budget is met, and what they leave.

    Parameters
    ----------
    candidates : Candidates
    budget : Budget
    allocation : str
        One of `allocation.ALLOCATIONS`.
    curves : mapping, or None
        For "sensitivity": what `curves` gives.

    Returns
    -------
    found : dict
        budget, allocation, amounts (layer -> percent of weights that go, or number of filters that
        stay), options (of `python -m l3prune.pruning`), predicted (sparsity, filters, macs, bytes:
        counted in the masks that these amounts give), met, near and note (see `budget.Outcome`).

    Raises
    ------
    ParameterError
        The allocation is unknown, or the budget cannot be met by it.

    Examples
    --------
    >>> from l3prune.budget import parse_budget
    >>> from l3prune.networks import create_network
    >>> candidates = Candidates(create_network("sea64"))
    >>> found = allocate(candidates, parse_budget("sparsity=90"), "uniform")
    >>> round(found["predicted"]["sparsity"], 4), found["met"]
    (0.9, True)
    """
    check_choice("allocation", allocation, ALLOCATIONS)
    rule = _rule(candidates, budget.kind, allocation, curves or {})
    try:
        amounts = meet(budget, candidates.costs, candidates.mode, rule)
    except ParameterError as error:
        raise ParameterError(f"allocation {allocation}: {error}") from error
    whole = kept(candidates.costs, amounts, candidates.mode)
    if candidates.mode == "filterwise":
        numbers: list[float] = list(whole.values())
        options = f"--filterwise --num_filters {' '.join(map(str, numbers))}"
    else:
        # As they are written: ten digits tell single weights apart in any layer.
        numbers = [float(f"{100 * amounts[layer]:.10g}") for layer in candidates.layers]
        options = f"--layerwise --sparsity {' '.join(f'{each:.10g}' for each in numbers)}"
    stay = candidates.stay(numbers)
    kinds = [kind for kind in COUNTED if kind != "filters" or candidates.mode == "filterwise"]
    predicted = {kind: measure(kind, candidates.costs, stay, candidates.mode) for kind in kinds}
    result = outcome(budget, predicted[budget.kind], candidates.costs)
    return {
        "budget": str(budget),
        "allocation": allocation,
        "amounts": dict(zip(candidates.layers, numbers, strict=True)),
        "options": f"{options} --criterion {candidates.criterion}",
        "predicted": predicted,
        "met": result.met,
        "near": result.near,
        "note": result.note,
    }


def _rule(
    candidates: Candidates,
    kind: str,
    allocation: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> Rule:
    chosen = share_out(allocation, kind, curves)

    def rule(costs: Sequence[LayerCost], level: float) -> dict[str, float]:
        # What was left out of the scan stays whole in every allocation, so that they compare.
        return {**chosen(costs, level), **dict.fromkeys(candidates.left_out, 0.0)}

    return rule
