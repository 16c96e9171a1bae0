"""Filters that are zero with all that belongs to them: made by training, and removed exactly.

A group is what goes with one filter: its kernel and bias, gamma and beta of every BatchNorm that
normalises its channel, and the same of all filters that are added to it. A group of zeros gives a
channel of zeros, which no later layer notices; so it can be removed and the output stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tf_keras as keras

from l3prune import graph
from l3prune.channels import named_layers
from l3prune.errors import L3PruneError, ParameterError
from l3prune.networks import inference
from l3prune.optimizers import HSPG, OBProxSG, ProxSG
from l3prune.plan import PruningPlan
from l3prune.recipes import Recipe
from l3prune.surgery import short_name

#: What of a layer's weights makes its channel zero.
_MEMBERS = ("kernel", "pointwise_kernel", "bias", "gamma", "beta")

#: How far outputs may be apart, as a part of the largest, by the order in which sums are rounded.
_TOLERANCE = 1e-5


def removable_groups(network: keras.Model) -> list[graph.FilterGroup]:
    """Those of a network's groups of filters of which each place can go once it is zero.

    Not those of the output, nor those that a softmax compares; see also `kept_reasons`.

    Raises
    ------
    ParameterError
        As `channels.follow`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> groups = removable_groups(create_network("dcase2021"))
    >>> [(group.name, group.size) for group in groups]
    [('conv_1', 16), ('conv_2', 16), ('conv_3', 32), ('dense_1', 100)]
    """
    return [
        group
        for group in graph.filter_groups(network)
        if group.removable.all() and not group.in_output and not group.lively.any()
    ]


def kept_reasons(network: keras.Model) -> dict[str, str]:
    """Layer -> why its filters cannot be removed when they are zero, of those that cannot.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> kept_reasons(create_network("dcase2021"))
    {'dense_2': "they are the network's output"}
    """
    reasons = {}
    for group in graph.filter_groups(network):
        if group.in_output:
            reason = "they are the network's output"
        elif not group.removable.all():
            reason = "the network compares them with each other or with its input"
        elif group.lively.any():
            reason = "a layer behind them makes something else of zeros"
        else:
            continue
        reasons.update(dict.fromkeys(group.filters, reason))
    return reasons


def variable_groups(network: keras.Model) -> list[np.ndarray | None]:
    """The groups of a network's trainable weights, in their order, as `optimizers` takes them.

    Raises
    ------
    ParameterError
        No group can be removed, or a part of one is not trained; the message names it.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> groups = variable_groups(create_network("dcase2021"))
    >>> [None if each is None else each.shape for each in groups][-4:]
    [(1, 100), (100,), None, None]
    """
    numbers: dict[int, np.ndarray] = {}
    start = 0
    for group in removable_groups(network):
        for weight, places in _members(network, group):
            # A layer behind a concatenation has channels of several groups.
            ours = np.where(places < 0, -1, start + places)
            before = numbers.get(id(weight), np.full_like(ours, -1))
            numbers[id(weight)] = np.maximum(before, ours)
        start += group.size
    if not numbers:
        raise ParameterError(
            f"no filter of network {network.name} can be removed when it is zero; "
            + "; ".join(f"{name}: {why}" for name, why in kept_reasons(network).items())
        )
    trained = {id(weight) for weight in network.trainable_weights}
    for name, layer in named_layers(network):
        for weight in layer.weights:
            if id(weight) in numbers and id(weight) not in trained:
                raise ParameterError(
                    f"{short_name(weight)} of layer {name} is not trained, so its groups would "
                    "never be zero as a whole; train all layers, with BatchNorm as 'train'"
                )
    return [numbers.get(id(weight)) for weight in network.trainable_weights]


def zero_places(network: keras.Model) -> dict[str, np.ndarray]:
    """Name of a removable group -> which of its places are zero as a whole.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("dcase2021")
    >>> for weight in network.get_layer("batch_normalization_1").trainable_weights:
    ...     _ = weight.assign(weight * ([0] + 15 * [1]))
    >>> int(zero_places(network)["conv_1"].sum())  # its kernel is not zero
    0
    """
    found = {}
    for group in removable_groups(network):
        alive = np.zeros(group.size, bool)
        for weight, places in _members(network, group):
            values = weight.numpy()
            axes = tuple(axis for axis, size in enumerate(places.shape) if size == 1 < values.ndim)
            nonzero = values.any(axis=axes) if axes else values != 0
            own = places.ravel() >= 0
            # A NaN is not zero either.
            alive[places.ravel()[own][np.ravel(nonzero)[own]]] = True
        found[group.name] = ~alive
    return found


def group_sparsity(network: keras.Model) -> float:
    """The fraction of removable groups that are zero.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> group_sparsity(create_network("dcase2021"))
    0.0
    """
    places = [*zero_places(network).values()]
    return float(np.concatenate(places).mean()) if places else 0.0


def plan_zero_filters(network: keras.Model) -> PruningPlan:
    """The plan that removes all filters that are zero with all that belongs to them.

    A layer whose filters all are zero keeps one of them.

    Raises
    ------
    ParameterError
        There is none that can be removed.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("dcase2021")
    >>> network.get_layer("dense_1").set_weights([np.eye(64, 100), np.zeros(100)])
    >>> plan = plan_zero_filters(network)
    >>> list(plan), int(plan["dense_1"].sum())
    (['dense_1'], 64)
    """
    plan: dict[str, np.ndarray] = {}
    zero = zero_places(network)
    for group in removable_groups(network):
        gone = zero[group.name].copy()
        for places in group.filters.values():
            if gone[places].all():
                gone[places[0]] = False
        if gone.any():
            plan.update((name, ~gone[places]) for name, places in group.filters.items())
    if not plan:
        why = [f"{name}: {reason}" for name, reason in kept_reasons(network).items()]
        raise ParameterError(
            f"no filter of network {network.name} is zero together with its bias and BatchNorm; "
            "train with --optimizer hspg, or a larger --lambda"
            + (f" (and these are never removed: {'; '.join(why)})" if why else "")
        )
    return PruningPlan(plan)


@dataclass(frozen=True)
class Removal:
    """What the removal of zero filters did.

    Attributes
    ----------
    group_sparsity : float
        The fraction of removable groups that was zero.
    largest_difference : float
        Of any output, by rounding, on noise.

    Examples
    --------
    >>> print(Removal(0.5, 0.0))
    50.0 % of the groups were zero; without them outputs differ by 0 at most
    """

    group_sparsity: float
    largest_difference: float

    def __str__(self) -> str:
        return (
            f"{100 * self.group_sparsity:.1f} % of the groups were zero; without them outputs "
            f"differ by {self.largest_difference:.2g} at most"
        )


def removal(network: keras.Model, smaller: keras.Model) -> Removal:
    """Check that a network without its zero filters gives the same output; see there.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64")
    >>> removal(network, network).largest_difference
    0.0
    """
    return Removal(group_sparsity(network), check_same_output(network, smaller))


def check_same_output(network: keras.Model, smaller: keras.Model) -> float:
    """Compare two networks on noise; gives the largest difference of their outputs.

    Raises
    ------
    L3PruneError
        They differ by more than rounding.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("sea64")
    >>> check_same_output(network, network)
    0.0
    """
    rng = np.random.default_rng(0)
    # Of any length: a second or so.
    shape = [4, *(32000 if each is None else int(each) for each in network.input_shape[1:])]
    inputs = rng.uniform(-1, 1, shape).astype(np.float32)
    before, after = (inference(each)(inputs) for each in (network, smaller))
    if before.shape != after.shape:
        raise L3PruneError(f"outputs have shapes {before.shape} and {after.shape}")
    difference = float(np.abs(before - after).max())
    if not difference <= _TOLERANCE * float(np.abs(before).max()):
        raise L3PruneError(
            f"network {network.name} without its zero filters gives other outputs, by up to "
            f"{difference:g}; nothing was written"
        )
    return difference


def make_optimizer(
    recipe: Recipe, network: keras.Model, steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    """The optimizer that a recipe names, for a network.

    Raises
    ------
    ParameterError
        As `variable_groups`.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> make_optimizer(Recipe(), create_network("dcase2021"), 10).name
    'Adam'
    """
    descent, rate = recipe.descent, recipe.learning_rate
    if descent.name == "adam":
        return keras.optimizers.Adam(rate)
    if descent.name == "sgd":
        return keras.optimizers.SGD(rate)
    direction, amount = descent.direction or "sgd", descent.regularization
    assert amount is not None  # `Descent` sees to it
    unit, length = 1, descent.prox_steps
    if length is None:
        unit, length = steps_per_epoch, descent.prox_epochs
    if descent.name == "obproxsg":
        length = 5 if length is None else length
        return OBProxSG(rate, amount, direction, length, descent.orthant_epochs, unit)
    groups = variable_groups(network)
    if descent.name == "proxsg":
        return ProxSG(rate, groups, amount, direction)
    return HSPG(rate, groups, amount, direction, descent.epsilon or 0.0, length or 0, unit)


def _members(
    network: keras.Model, group: graph.FilterGroup
) -> Iterator[tuple[keras.Variable, np.ndarray]]:
    """The weights of a group, with the place of each channel along the weight's axes."""
    layers = dict(named_layers(network))
    for name, places in (*group.filters.items(), *group.followers.items()):
        layer = layers[name]
        for weight in layer.weights:
            if short_name(weight) in _MEMBERS:
                shape = [1] * len(weight.shape)
                transposed = isinstance(layer, keras.layers.Conv2DTranspose)
                axis = -2 if transposed and short_name(weight) == "kernel" else -1
                shape[axis] = len(places)
                yield weight, places.reshape(shape)
