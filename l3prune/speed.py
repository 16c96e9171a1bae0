"""Budgets of milliseconds: how many multiply-accumulates are fast enough on this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tf_keras as keras
from tqdm import tqdm

from l3prune import budget as budgets
from l3prune.checks import check_whole
from l3prune.complexity import layer_costs
from l3prune.errors import ParameterError
from l3prune.pruner import Wish, prune, what_stays
from l3prune.sparse import SparseModel
from l3prune.timing import latency

#: Networks that are pruned and timed at most, besides the whole one.
_TRIES = 10

#: So near below the limit, as a part of it, the search ends.
_NEAR = 0.03


@dataclass(frozen=True)
class Measured:
    """A budget of milliseconds as one of multiply-accumulates, which it was on this machine.

    Attributes
    ----------
    budget : str
        For `Wish`, such as "macs<=1103287".
    milliseconds : float
        Median for one input of the network that this budget gave when it was found.
    engine : str
        What computed it: "sparse" or "dense", see `engines`.

    Examples
    --------
    >>> print(Measured("macs<=1103287", 18.66, "sparse"))
    18.7 ms by the sparse engine at macs<=1103287
    """

    budget: str
    milliseconds: float
    engine: str

    @classmethod
    def from_record(cls, record: Any, where: object) -> Measured:
        """What a run's record, read from `where`, says under "measured"."""
        values = record.get("measured") if isinstance(record, dict) else None
        kinds = {"budget": str, "milliseconds": int | float, "engine": str}
        if (
            not isinstance(values, dict)
            or values.keys() != kinds.keys()
            or not all(isinstance(values[name], kind) for name, kind in kinds.items())
        ):
            raise ParameterError(f"{where} has no measured budget to continue with")
        return cls(**values)

    def __str__(self) -> str:
        return f"{self.milliseconds:.3g} ms by the {self.engine} engine at {self.budget}"


def meet_milliseconds(
    network: keras.Model, wish: Wish, *, rounds: int = 15, quiet: bool = True
) -> Measured:
    """The largest budget of multiply-accumulates with which a network is fast enough.

    Networks are pruned as wished to several such budgets, and timed behind their front end, one
    input at a time, by all threads: with zeros by the sparse engine, with filters removed by
    TensorFlow. What else the machine does at the time is in the result.

    Parameters
    ----------
    network : keras.Model
        Functional.
    wish : Wish
        With a budget such as "ms<=20".
    rounds : int
        See `timing.latency`.
    quiet : bool
        No progress bar.

    Returns
    -------
    measured : Measured
        At most the limit in the round of measurements that found it.

    Raises
    ------
    ParameterError
        The limit cannot be met; the criterion needs data; or the sparse engine does not know a
        layer, which the message names.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64", filters=[4] * 8)
    >>> meet_milliseconds(network, Wish(budget="ms<=1000")).engine
    'sparse'
    """
    check_whole("rounds", rounds, 1)
    budget = budgets.parse_budget(wish.budget or "")
    if budget.kind != "ms":
        raise ParameterError(f"budget {budget} is not of milliseconds")
    if wish.needs_data:
        raise ParameterError(
            f"{budget} prunes many times, and criterion {wish.criterion} needs data each time; "
            "take another criterion, or a budget of MACs"
        )
    engine = "dense" if wish.filterwise else "sparse"
    bar = tqdm(total=1 + _TRIES, desc=f"budget {budget}", unit="network", disable=quiet or None)

    def time_of(pruned: keras.Model) -> float:
        timed = pruned if wish.filterwise else SparseModel.from_network(pruned)
        median = float(np.median(latency({"pruned": timed}, rounds=rounds)["pruned"]))
        bar.update()
        return median

    # (MACs, milliseconds) of what is too slow, and of what is fast enough.
    costs = layer_costs(network)
    mode = "filterwise" if wish.filterwise else "layerwise"
    whole = what_stays(network, wish.filterwise)
    with bar:
        slow = (budgets.measure("macs", costs, whole, mode), time_of(network))
        if slow[1] <= budget.value:
            return Measured(f"macs<={math.ceil(slow[0])}", slow[1], engine)
        fast: tuple[float, float] | None = None
        for _ in range(_TRIES):
            macs = math.floor(_next(slow, fast, budget.value))
            try:
                pruned, _ = prune(network, replace(wish, budget=f"macs<={macs}"))
            except ParameterError as error:
                if fast is not None:
                    break
                raise ParameterError(
                    f"{budget} cannot be met {mode}: {slow[0]:,.0f} MACs take {slow[1]:.3g} ms, "
                    f"and macs<={macs} is too little ({error})"
                ) from error
            milliseconds = time_of(pruned)
            if milliseconds > budget.value:
                slow = (macs, milliseconds)
            else:
                fast = (macs, milliseconds)
                if milliseconds >= (1 - _NEAR) * budget.value:
                    break
    if fast is None:
        raise ParameterError(
            f"{budget} cannot be met {mode}: {slow[0]:,.0f} MACs still take {slow[1]:.3g} ms; ask "
            "for less, or for another network"
        )
    return Measured(f"macs<={fast[0]:.0f}", fast[1], engine)


def _next(slow: tuple[float, float], fast: tuple[float, float] | None, limit: float) -> float:
    """MACs to try, as if time were proportional to them, or linear between two measurements."""
    if fast is None:
        return slow[0] * min(0.97 * limit / slow[1], 0.7)
    part = (0.985 * limit - fast[1]) / max(slow[1] - fast[1], 1e-9)
    # Never at an end, where nothing new would be learnt.
    return fast[0] + min(max(part, 0.15), 0.85) * (slow[0] - fast[0])
