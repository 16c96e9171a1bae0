"""From what a user wishes to masks that change in retraining: which rule, at which steps."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import tf_keras as keras

from l3prune import graph, pruner
from l3prune.errors import ParameterError
from l3prune.gradual import (
    GradualPruning,
    MaskUpdate,
    layer_by_layer,
    prunable,
    sparsity_schedule,
)
from l3prune.pruner import Wish
from l3prune.rigl import RigL

KINDS = ("constant", "polynomial", "layer-by-layer", "rigl")

#: What each kind looks at. Weights that go all at once have no frequency; those of a ramp have.
_SETTINGS = {
    "constant": ("begin_step",),
    "polynomial": ("frequency", "begin_step", "end_step", "initial_sparsity"),
    "layer-by-layer": ("epochs_per_layer", "ramp"),
    "rigl": ("frequency", "end_step", "alpha"),
}


@dataclass(frozen=True)
class MaskSchedule:
    """How masks change while a network is retrained.

    Attributes
    ----------
    kind : {"constant", "polynomial", "layer-by-layer", "rigl"}
        All weights go at `begin_step`; little by little until `end_step`; one layer after another;
        or they are gone from the start and move to where they help most. See `gradual`, `rigl`.
    frequency : int or None
        Training steps between changes, of "polynomial", "rigl" and a ramp; None takes 100.
    begin_step, end_step : int or None
        None: 0; half of the training, and three quarters for "rigl".
    initial_sparsity : float or None
        In [0, 1), of "polynomial"; None takes 0.
    epochs_per_layer : int or None
        Of "layer-by-layer"; None shares the run's epochs out evenly.
    ramp : bool
        Of "layer-by-layer": each layer little by little.
    alpha : float or None
        Of "rigl": the fraction that moves at first; None takes 0.3.

    Raises
    ------
    ParameterError
        The kind is unknown, or a setting is of another kind.

    Examples
    --------
    >>> MaskSchedule("rigl", begin_step=5)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: begin_step is not for the mask schedule rigl; it takes ...
    """

    kind: str
    frequency: int | None = None
    begin_step: int | None = None
    end_step: int | None = None
    initial_sparsity: float | None = None
    epochs_per_layer: int | None = None
    ramp: bool = False
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ParameterError(f"mask schedule {self.kind!r}; allowed: {', '.join(KINDS)}")
        takes = (*_SETTINGS[self.kind], *(("frequency",) if self.ramp else ()))
        for name in sorted({name for names in _SETTINGS.values() for name in names}):
            value = getattr(self, name)
            if value is None or value is False:  # 0 is a value
                continue
            if name not in takes:
                raise ParameterError(
                    f"{name} is not for the mask schedule {self.kind}; it takes {', '.join(takes)}"
                )


def begin(
    network: keras.Model,
    wish: Wish,
    schedule: MaskSchedule,
    steps_per_epoch: int,
    epochs: int,
) -> tuple[keras.Model, MaskUpdate]:
    """A copy of a network as its retraining begins, and what changes its masks from then on.

    Parameters
    ----------
    network : keras.Model
    wish : Wish
        For masks: what the schedule ends with. "rigl" begins with it.
    schedule : MaskSchedule
    steps_per_epoch, epochs : int
        Of the retraining.

    Returns
    -------
    student : keras.Model
        With `MaskedConv2D` layers, where masks are to change.
    update : MaskUpdate
        For `distillation.distill` and `training.fit`.

    Raises
    ------
    ParameterError
        The wish is for filters, or for a pattern, which would not stay; a value is outside its
        range.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> wish, schedule = Wish(amount=0.9), MaskSchedule("polynomial")
    >>> _, update = begin(create_network("sea64"), wish, schedule, 100, 10)
    >>> update.end_step
    500
    """
    if wish.filterwise or wish.pattern is not None:
        raise ParameterError(
            "masks change by single weights or blocks in retraining, not by "
            f"{'filters' if wish.filterwise else 'patterns'}: leave out the mask schedule"
        )
    steps = steps_per_epoch * epochs
    frequency = 100 if schedule.frequency is None else schedule.frequency
    if schedule.kind == "rigl":
        if wish.block is not None:
            raise ParameterError("RigL moves single weights, so blocks would not stay whole")
        student, _ = pruner.prune(network, wish)
        end_step = max(1, 3 * steps // 4) if schedule.end_step is None else schedule.end_step
        alpha = 0.3 if schedule.alpha is None else schedule.alpha
        return student, RigL(end_step, frequency=frequency, alpha=alpha)
    target = pruner.sparsity(network, wish)
    # The criterion's scores take the place of kernels there, see `GradualPruning`.
    prune = functools.partial(
        GradualPruning,
        plan=pruner.rule(replace(wish, criterion=None)),
        criterion=wish.criterion_name,
    )
    layers = list(graph.convolutions(network))
    if schedule.kind == "layer-by-layer":
        if not isinstance(target, list):
            raise ParameterError(
                "layer by layer needs a sparsity for each layer, not one threshold for all"
            )
        pruned = sum(value > 0 for value in target)
        turns = max(1, pruned + schedule.ramp)
        each = schedule.epochs_per_layer
        schedules = layer_by_layer(
            dict(zip(layers, target, strict=True)),
            # With fewer epochs than layers the run ends too early, which `fit` says.
            max(1, epochs // turns) if each is None else each,
            steps_per_epoch,
            ramp=schedule.ramp,
            frequency=frequency,
        )
        return prunable(network, list(schedules)), prune(schedules)

    def scheduled(value: float):
        begin_step = schedule.begin_step or 0
        end_step = schedule.end_step
        if schedule.kind == "polynomial" and end_step is None:
            end_step = max(begin_step + 1, steps // 2)
        return sparsity_schedule(
            schedule.kind,
            value,
            begin_step=begin_step,
            end_step=end_step,
            frequency=frequency,
            initial_sparsity=schedule.initial_sparsity or 0.0,
        )

    if not isinstance(target, list):
        return prunable(network), prune(scheduled(target))
    each_schedule = {
        name: scheduled(value) for name, value in zip(layers, target, strict=True) if value > 0
    }
    if not each_schedule:
        raise ParameterError("no layer has a sparsity above 0, so there is nothing to prune")
    return prunable(network, list(each_schedule)), prune(each_schedule)
