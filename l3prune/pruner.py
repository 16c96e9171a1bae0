"""From what a user wishes to a pruned network: which plan is made, and how it is carried out."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tf_keras as keras

from l3prune import budget as budgets
from l3prune import complexity, graph, surgery
from l3prune.allocation import erk, uniform
from l3prune.errors import ParameterError
from l3prune.filterwise import plan_filterwise, plan_sequential
from l3prune.patterns import plan_blocks, plan_pattern
from l3prune.plan import PruningPlan, plan_global, plan_layerwise, score

ALLOCATIONS = {"uniform": uniform, "erk": erk}


@dataclass(frozen=True)
class Wish:
    """How a network is to be pruned.

    Attributes
    ----------
    filterwise : bool
        Remove whole filters, by surgery; otherwise zero single weights, by masks.
    amount : float, sequence of float, or None
        In [0, 1): sparsity, or with `filterwise` the fraction of filters removed; one for all
        layers, or one each. Filterwise, one for all leaves alone the filters of the network's
        output, and layers that share only some of their filters with another (a concatenation that
        is added to something).
    overall : float or None
        The same for all layers together, by one threshold.
    counts : sequence of int or None
        Filterwise: how many filters of each layer stay. A chain is ranked as EdgeL3 does it, each
        layer without the channels that it has lost.
    pattern : str or None
        "N:M": of every M input channels, N stay, at each place of each filter.
    block : str or None
        "IxO": weights go in blocks of I input channels and O filters, to the sparsity `amount`.
    budget : str or None
        See `budget.parse_budget`.
    allocation : str
        How a budget is shared among the layers: one of `ALLOCATIONS`.
    round_to : int
        Filterwise: layers keep multiples of it.
    criterion : str or None
        None: magnitude, or l1 of filters.

    Raises
    ------
    ParameterError
        Nothing or too much is wished for, or options that do not go together.

    Examples
    --------
    >>> Wish(filterwise=True, counts=[64, 48]).criterion_name
    'l1'
    >>> Wish(pattern="2-4")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: pattern '2-4' is not N:M, such as 2:4
    """

    filterwise: bool = False
    amount: float | Sequence[float] | None = None
    overall: float | None = None
    counts: Sequence[int] | None = None
    pattern: str | None = None
    block: str | None = None
    budget: str | None = None
    allocation: str = "uniform"
    round_to: int = 1
    criterion: str | None = None

    def __post_init__(self) -> None:
        ways = ("amount", "overall", "counts", "pattern", "budget")
        given = [way for way in ways if getattr(self, way) is not None]
        if len(given) != 1:
            raise ParameterError(
                f"give exactly one of {', '.join(ways)}; given: {', '.join(given) or 'none'}"
            )
        if self.counts is not None and not self.filterwise:
            raise ParameterError("counts of filters are for filterwise pruning")
        if self.filterwise and (self.pattern or self.block):
            raise ParameterError("patterns and blocks are of single weights, so not filterwise")
        if self.round_to != 1 and not (
            self.filterwise and (self.amount is not None or self.overall is not None)
        ):
            raise ParameterError(
                "round_to is for ratios of filters: counts and budgets are met to the filter"
            )
        if self.block is not None and self.amount is None:
            raise ParameterError("blocks go to a sparsity of each layer; give amount")
        for name, text, form in (
            ("pattern", self.pattern, r"(\d+):(\d+)"),
            ("block", self.block, r"(\d+)x(\d+)"),
        ):
            if text is not None and not re.fullmatch(form, text):
                example = "N:M, such as 2:4" if name == "pattern" else "IxO, such as 4x4"
                raise ParameterError(f"{name} {text!r} is not {example}")
        if self.allocation not in ALLOCATIONS:
            raise ParameterError(
                f"allocation {self.allocation!r} is unknown; known: {', '.join(ALLOCATIONS)}"
            )
        if self.budget is not None:
            budgets.parse_budget(self.budget)

    @property
    def criterion_name(self) -> str:
        """The criterion, the default if there is none."""
        return self.criterion or ("l1" if self.filterwise else "magnitude")


def prune(network: keras.Model, wish: Wish) -> tuple[keras.Model, PruningPlan]:
    """A pruned copy of a network, and the plan that made it.

    Parameters
    ----------
    network : keras.Model
        Functional.
    wish : Wish

    Returns
    -------
    pruned : keras.Model
        With `MaskedConv2D` layers, or filterwise with fewer filters.
    plan : PruningPlan

    Raises
    ------
    ParameterError
        As the plans, `surgery.apply_masks` and `surgery.remove_filters`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> smaller, plan = prune(create_network("sea64"), Wish(filterwise=True, amount=0.5))
    >>> smaller.get_layer("conv_7").filters, smaller.output_shape
    (32, (None, 64))
    """
    plan = make_plan(network, wish)
    if wish.filterwise:
        return surgery.remove_filters(network, plan), plan
    return surgery.apply_masks(network, plan), plan


def make_plan(network: keras.Model, wish: Wish) -> PruningPlan:
    """The plan for a network; see `prune`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> plan = make_plan(create_network("sea64"), Wish(pattern="2:4"))
    >>> float(plan["conv_2"].mean())
    0.5
    """
    return _plan_filters(network, wish) if wish.filterwise else _plan_weights(network, wish)


def _plan_weights(network: keras.Model, wish: Wish) -> PruningPlan:
    weights = graph.conv_weights(network)
    criterion = wish.criterion_name
    if wish.pattern is not None:
        n, m = map(int, wish.pattern.split(":"))
        return plan_pattern(weights, n, m, criterion)
    if wish.overall is not None:
        return plan_global(weights, wish.overall, criterion)
    if wish.budget is not None:
        amounts = budgets.meet(
            budgets.parse_budget(wish.budget),
            complexity.layer_costs(network),
            "layerwise",
            ALLOCATIONS[wish.allocation],
        )
        return plan_layerwise(weights, [amounts[name] for name in weights], criterion)
    assert wish.amount is not None  # the only way left, checked by Wish
    if wish.block is not None:
        rows, columns = map(int, wish.block.split("x"))
        return plan_blocks(weights, wish.amount, (rows, columns), criterion)
    return plan_layerwise(weights, wish.amount, criterion)


def _plan_filters(network: keras.Model, wish: Wish) -> PruningPlan:
    weights = graph.conv_weights(network)
    groups = graph.filter_groups(network)
    if wish.counts is not None and all(len(group.filters) == 1 for group in groups):
        return plan_sequential(weights, wish.counts, wish.criterion_name)
    each = isinstance(wish.amount, Sequence) and len(wish.amount) > 1
    fixed = {
        name
        for group in groups
        if not group.removable.all()
        or (group.in_output and not each and wish.counts is None)
        or not all(np.array_equal(p, np.arange(group.size)) for p in group.filters.values())
        for name in group.filters
    }
    scores = {
        name: values
        for name, values in score(weights, wish.criterion_name).items()
        if name not in fixed
    }
    if not scores:
        raise ParameterError(
            "no layer can lose filters here: those of the output stay, and those that share only "
            "some of their filters with another"
        )
    together = [
        tuple(name for name in group.filters if name in scores)
        for group in groups
        if sum(name in scores for name in group.filters) > 1
    ]
    choose = functools.partial(plan_filterwise, scores, groups=together, round_to=wish.round_to)
    if wish.counts is not None:
        return choose(counts=wish.counts)
    if wish.overall is not None:
        return choose(global_ratio=wish.overall)
    if wish.budget is None:
        return choose(ratio=wish.amount)
    costs = complexity.layer_costs(network)
    rule = ALLOCATIONS[wish.allocation]

    def leaving_the_fixed(layers, level):
        # What is not pruned counts all the same.
        return {**dict.fromkeys(fixed, 0.0), **rule([c for c in layers if c.name in scores], level)}

    amounts = budgets.meet(
        budgets.parse_budget(wish.budget), costs, "filterwise", leaving_the_fixed, groups=together
    )
    return choose(ratio=[amounts[name] for name in scores])
