"""How a network is made smaller: by a criterion, or by a training of its own that comes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tf_keras as keras

from l3prune import surgery
from l3prune.activations import DATA_CRITERIA
from l3prune.criteria import drawn
from l3prune.descent import Descent
from l3prune.errors import ParameterError
from l3prune.methods.settings import UNPRUNED, WAYS, Cell
from l3prune.methods.tasks import Task
from l3prune.plan import PruningPlan
from l3prune.pruner import Wish, prune
from l3prune.slimming import check_penalised
from l3prune.zero_filters import group_sparsity, variable_groups


@dataclass(frozen=True)
class Made:
    """A smaller network, before it is retrained.

    Attributes
    ----------
    network : keras.Model
    epochs : int
        Of the budget, that making it took; retraining has the rest.

    Examples
    --------
    >>> Made(keras.Sequential()).epochs
    0
    """

    network: keras.Model
    epochs: int = 0


#: (task, cell, epochs of the budget, folder for what it trains) -> what it made.
Maker = Callable[[Task, Cell, int, Path], Made]


@dataclass(frozen=True)
class Training:
    """A method that trains the network with a penalty before filters go.

    Attributes
    ----------
    make : callable
        See `Maker`.
    amounts : {"ratios", "strengths"}
        The option whose values are its amounts: percent of filters that go, or the penalty, of
        which follows how many do.
    check : callable, (network, epochs of the budget), or None
        Refuses what cannot be trained so, before anything is computed.

    Examples
    --------
    >>> Training(by_criterion).amounts
    'ratios'
    """

    make: Maker
    amounts: str = "ratios"
    check: Callable[[keras.Model, int], None] | None = None


#: Methods that train first, by their names in --trained.
TRAININGS: dict[str, Training] = {}


def by_criterion(task: Task, cell: Cell, epochs: int, folder: Path) -> Made:
    """Prune at once; all epochs are left for retraining. A `Maker`, of `settings.WAYS`.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from l3prune.networks import create_network
    >>> task = SimpleNamespace(teacher=create_network("sea64"))
    >>> made = by_criterion(task, Cell((1,), "filterwise", "l1", 50, 0), 5, Path("unused"))
    >>> made.network.get_layer("conv_1").filters
    16
    """
    if cell.way == UNPRUNED:
        return Made(surgery.remove_filters(task.teacher, PruningPlan({})))  # a copy
    wish = Wish(
        filterwise=cell.way == "filterwise", amount=cell.amount / 100, criterion=cell.criterion
    )
    with drawn(cell.seed):
        pruned, _ = prune(task.teacher, wish, task.scoring_batches() if wish.needs_data else None)
    return Made(pruned)


def slimming(task: Task, cell: Cell, epochs: int, folder: Path) -> Made:
    """Network slimming: half of the epochs with the penalty on BatchNorm's scales, then one
    threshold for all. A `Maker`, of a table whose amounts are ratios.

    Examples
    --------
    >>> TRAININGS["slimming"].make is slimming
    True
    """
    network = surgery.remove_filters(task.teacher, PruningPlan({}))  # a copy
    first = epochs // 2
    task.train(
        network,
        folder,
        first,
        cell.seed,
        gamma_l1=task.args.gamma_l1,
        batch_norm="train",
        best_from=first - 1,
    )
    wish = Wish(filterwise=True, overall=cell.amount / 100, criterion="bn_gamma")
    return Made(prune(network, wish)[0], first)


def hspg(task: Task, cell: Cell, epochs: int, folder: Path) -> Made:
    """HSPG: all epochs with the optimizer, half of them ProxSG's; then what is zero goes.

    A `Maker`, of a table whose amounts are lambdas. Where nothing is zero, the network stays whole.

    Examples
    --------
    >>> TRAININGS["hspg"].amounts
    'strengths'
    """
    network = surgery.remove_filters(task.teacher, PruningPlan({}))  # a copy
    descent = Descent(
        "hspg",
        cell.amount,
        epsilon=task.args.hspg_epsilon,
        direction="adam",
        prox_epochs=epochs // 2,
    )
    task.train(
        network,
        folder,
        epochs,
        cell.seed,
        descent=descent,
        batch_norm="train",
        best_from=epochs - 1,
    )
    if group_sparsity(network):
        network, _ = prune(network, Wish(filterwise=True, zero=True))
    return Made(network, epochs)


def _check_slimming(network: keras.Model, epochs: int) -> None:
    if epochs < 2:
        raise ParameterError("slimming trains in half of the epochs: give --num-epochs 2 or more")
    check_penalised(network)


def _check_hspg(network: keras.Model, epochs: int) -> None:
    variable_groups(network)  # refuses a network without any


TRAININGS |= {
    "slimming": Training(slimming, check=_check_slimming),
    "hspg": Training(hspg, "strengths", _check_hspg),
}


def maker(way: str) -> Maker:
    """What makes the networks of a way.

    Raises
    ------
    ParameterError
        Unknown way.

    Examples
    --------
    >>> maker("layerwise") is by_criterion
    True
    >>> maker("by hand")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: --trained 'by hand' is unknown; known: ...
    """
    if way in (*WAYS, UNPRUNED):
        return by_criterion
    if way not in TRAININGS:
        known = ", ".join(sorted(TRAININGS)) or "none"
        raise ParameterError(f"--trained {way!r} is unknown; known: {known}")
    return TRAININGS[way].make


def check_cells(network: keras.Model, cells: list[Cell], epochs: int) -> None:
    """Refuse criteria that cannot score a network, methods that cannot train it for so many epochs,
    and ratios that leave a layer no filter.

    Criteria from data are tried when the data are there.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> check_cells(create_network("sea64"), [Cell((1,), "filterwise", "l1", 99, 0)], 5)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: layer conv_1: 99 % of 32 filters leaves none; give at most 96.9 %
    """
    tried: set[tuple[str, str, float]] = set()
    for cell in cells:
        key = (cell.way, cell.criterion, cell.amount)
        if cell.way == UNPRUNED or key in tried:
            continue
        tried.add(key)
        ratio = cell.amount / 100
        try:
            if cell.way == "layerwise":
                prune(network, Wish(amount=ratio, criterion=cell.criterion))
                continue
            if cell.way in TRAININGS:
                check = TRAININGS[cell.way].check
                if check is not None:
                    check(network, epochs)
                continue  # how much goes of each layer, training tells
            known = cell.criterion and cell.criterion not in DATA_CRITERIA
            wish = Wish(filterwise=True, amount=ratio, criterion=cell.criterion if known else "l1")
            _, plan = prune(network, wish)
        except ParameterError as error:
            words = " ".join(filter(None, (cell.way, cell.criterion, f"{cell.amount:g}")))
            raise ParameterError(f"{words}: {error}") from error
        for name, mask in plan.items():
            if mask.size * (1 - ratio) < 0.5:
                raise ParameterError(
                    f"layer {name}: {cell.amount:g} % of {mask.size} filters leaves none; give at "
                    f"most {100 * (1 - 1 / mask.size):.3g} %"
                )
