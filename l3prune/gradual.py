"""Gradual pruning: masks that change in training, on tfmot's schedules, layer by layer.

The masks are weights of `MaskedConv2D` layers, so a training step that has been traced sees them
change, and a checkpoint holds them. The place in a schedule is the optimizer's count of steps,
which a checkpoint holds too: a resumed run goes on in the middle of a schedule.
"""

from __future__ import annotations

import abc
import functools
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune.batches import Batches
from l3prune.checks import check_whole
from l3prune.criteria import ConvWeights, get_criterion
from l3prune.errors import L3PruneError, ParameterError
from l3prune.graph import conv_weights, convolutions
from l3prune.layers import MaskedConv2D
from l3prune.plan import PruningPlan, check_fraction, plan_layerwise, score
from l3prune.surgery import apply_masks

#: (weights, sparsity, or one sparsity a layer) -> plan, as `plan_layerwise` and `plan_global`.
Rule = Callable[..., PruningPlan]


def prunable(network: keras.Model, layers: Collection[str] | None = None) -> keras.Model:
    """A copy of a network whose convolutions have masks, that keep all there is now.

    Parameters
    ----------
    network : keras.Model
        Functional.
    layers : collection of str, or None
        Convolutions; None takes all.

    Raises
    ------
    ParameterError
        A layer is no convolution of the network.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> type(prunable(create_network("sea64"), ["conv_2"]).get_layer("conv_2")).__name__
    'MaskedConv2D'
    """
    known = convolutions(network)
    for name in layers or ():
        if name not in known:
            raise ParameterError(f"there is no convolution {name}; known: {', '.join(known)}")
    return apply_masks(
        network,
        PruningPlan(
            {name: np.ones(known[name].kernel.shape, bool) for name in layers or known},
        ),
    )


def sparsity_schedule(
    kind: str,
    sparsity: float,
    *,
    begin_step: int = 0,
    end_step: int | None = None,
    frequency: int = 100,
    initial_sparsity: float = 0.0,
    power: float = 3,
):
    """A schedule of tfmot's.

    Parameters
    ----------
    kind : {"constant", "polynomial"}
        `ConstantSparsity`: all at `begin_step`. `PolynomialDecay` (Zhu and Gupta, 2017): from
        `initial_sparsity` at `begin_step` to `sparsity` at `end_step`, quickly at first.
    sparsity : float
        In [0, 1), at the end.
    begin_step, end_step : int, int or None
        In training steps. "constant" needs no end.
    frequency : int
        Steps from one pruning to the next.
    initial_sparsity, power : float
        Of "polynomial".

    Returns
    -------
    schedule : tensorflow_model_optimization.sparsity.keras.PruningSchedule

    Raises
    ------
    ParameterError
        A value outside its range.

    Examples
    --------
    >>> schedule = sparsity_schedule("polynomial", 0.8, end_step=200)
    >>> round(float(schedule(100)[1]), 4)
    0.7
    """
    if kind not in ("constant", "polynomial"):
        raise ParameterError(f"kind={kind!r}; allowed: 'constant', 'polynomial'")
    check_fraction(sparsity)
    check_fraction(initial_sparsity, "initial_sparsity")
    check_whole("begin_step", begin_step, 0)
    check_whole("frequency", frequency, 1)
    if end_step is not None:
        check_whole("end_step", end_step, begin_step + (kind == "polynomial"))
    elif kind == "polynomial":
        raise ParameterError("a polynomial schedule needs an end_step, where it is at its sparsity")
    if initial_sparsity > sparsity:
        raise ParameterError(
            f"initial_sparsity={initial_sparsity:g} is above sparsity={sparsity:g}, and pruned "
            "weights do not come back; give one that is not"
        )
    if isinstance(power, bool) or not isinstance(power, int | float) or not 0 < power < math.inf:
        raise ParameterError(f"power={power!r} is not a positive number")
    tfmot = _tfmot()
    if kind == "constant":
        end = -1 if end_step is None else end_step
        return tfmot.ConstantSparsity(sparsity, begin_step, end, frequency)
    return tfmot.PolynomialDecay(
        initial_sparsity, sparsity, begin_step, end_step, power=power, frequency=frequency
    )


def layer_by_layer(
    sparsities: Mapping[str, float],
    epochs: int,
    steps_per_epoch: int,
    *,
    ramp: bool = False,
    frequency: int = 100,
) -> dict[str, Any]:
    """Schedules that prune one layer, train for some epochs, prune the next, and so on.

    Parameters
    ----------
    sparsities : mapping of str to float
        Layer -> its sparsity, in the order of pruning. Layers of sparsity 0 take no time.
    epochs : int
        For each layer; the last layer's begin with the last pruning.
    steps_per_epoch : int
    ramp : bool
        A layer comes to its sparsity little by little over its epochs, not at once.
    frequency : int
        Steps from one pruning to the next of a ramp.

    Returns
    -------
    schedules : dict of str to tensorflow_model_optimization.sparsity.keras.PruningSchedule
        As `GradualPruning` takes them.

    Raises
    ------
    ParameterError
        A value outside its range, or nothing to prune.

    Examples
    --------
    >>> schedules = layer_by_layer({"conv_1": 0, "conv_2": 0.5, "conv_3": 0.7}, 2, 100)
    >>> {name: schedule.begin_step for name, schedule in schedules.items()}
    {'conv_2': 0, 'conv_3': 200}
    """
    check_whole("epochs", epochs, 1)
    check_whole("steps_per_epoch", steps_per_epoch, 1)
    steps = epochs * steps_per_epoch
    each = {name: value for name, value in sparsities.items() if check_fraction(value)}
    if not each:
        raise ParameterError("no layer has a sparsity above 0, so there is nothing to prune")
    return {
        name: sparsity_schedule(
            "polynomial" if ramp else "constant",
            value,
            begin_step=number * steps,
            end_step=(number + ramp) * steps,
            frequency=frequency,
        )
        for number, (name, value) in enumerate(each.items())
    }


class MaskUpdate(keras.callbacks.Callback, abc.ABC):
    """Changes masks between training steps: what `GradualPruning` and `rigl.RigL` share.

    What is due at step t is done when the optimizer has made t steps and is about to make the
    next, as in tfmot: there is always training after it. A checkpoint after step t does not have
    that yet, and a run that goes on from there begins with it: beside the masks and the count of
    steps there is no state to keep. After each epoch the logs have `sparsity`, of all convolution
    kernels.

    Attributes
    ----------
    layers : tuple of str, or None
        The `MaskedConv2D` layers whose masks change; None for all that are trainable.
    end_step : int
        The last step at which masks may change.
    final_step : int
        From this step on the network is as sparse as it is to be.
    training_batches : callable or None
        What `training.fit` trains on.
    changed : callable or None
        Called with the step after masks have changed.

    Examples
    --------
    >>> update = GradualPruning(sparsity_schedule("polynomial", 0.5, end_step=300))
    >>> isinstance(update, MaskUpdate), update.epochs(100, 5)
    (True, (3, 3))
    """

    def __init__(self, layers: Collection[str] | None, end_step: int, final_step: int):
        super().__init__()
        self.layers = None if layers is None else tuple(layers)
        self.end_step = end_step
        self.final_step = final_step
        self.training_batches: Batches | None = None
        self.changed: Callable[[int], None] | None = None
        #: The layers whose masks change, once the network is known.
        self.masked: dict[str, MaskedConv2D] = {}

    @abc.abstractmethod
    def description(self) -> dict[str, Any]:
        """What tells this rule from another, as JSON values; a run keeps it."""

    @abc.abstractmethod
    def continues(self, first: PruningPlan, later: PruningPlan) -> bool:
        """Whether a run that began with the masks `first` can have come to `later`."""

    @abc.abstractmethod
    def _update(self, step: int) -> bool:
        """Do what is due at a step; whether masks changed."""

    def epochs(self, steps_per_epoch: int, epochs: int) -> tuple[int, int]:
        """The first epochs, from 0, that end with masks at rest, and with the final sparsity.

        Raises
        ------
        ParameterError
            A run of that many epochs does not train with the final sparsity.
        """
        steps = steps_per_epoch * epochs
        if self.final_step >= steps:
            raise ParameterError(
                f"the network comes to its final sparsity after {self.final_step} steps and the "
                f"run has {steps} ({epochs} epochs of {steps_per_epoch}); end the schedule earlier "
                "or train for more epochs"
            )
        return self.end_step // steps_per_epoch, self.final_step // steps_per_epoch

    def set_model(self, model):
        super().set_model(model)
        found = {
            name: layer
            for name, layer in convolutions(model).items()
            if isinstance(layer, MaskedConv2D) and layer.trainable
        }
        names = tuple(found) if self.layers is None else self.layers
        missing = [name for name in names if name not in found]
        if missing or not names:
            raise ParameterError(
                f"masks are to change in {', '.join(missing) or 'all MaskedConv2D layers'}, and "
                f"the network's trainable MaskedConv2D layers are: {', '.join(found) or 'none'}; "
                "give masks to a network with gradual.prunable"
            )
        self.masked = {name: found[name] for name in names}

    def on_train_batch_begin(self, batch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        if self._update(step) and self.changed is not None:
            self.changed(step)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            layers = convolutions(self.model).values()
            pruned = sum(
                int(np.sum(~layer.mask.numpy()))
                for layer in layers
                if isinstance(layer, MaskedConv2D)
            )
            logs["sparsity"] = pruned / sum(int(np.prod(layer.kernel.shape)) for layer in layers)

    def kernel(self, name: str, step: int) -> np.ndarray:
        """A layer's kernel as it is, if it is finite."""
        kernel = self.masked[name].kernel.numpy()
        if not np.isfinite(kernel).all():
            raise L3PruneError(
                f"training diverged before step {step} (layer {name} has weights that are not "
                "finite); take a smaller learning rate"
            )
        return kernel


class GradualPruning(MaskUpdate):
    """Prunes the kernels of a network while it is trained, on schedules.

    At each pruning step of a schedule the criterion scores the network as it is then, and the rule
    plans masks for the schedule's sparsity of then. A pruned weight stays pruned, and counts as
    such: it ranks below all others, whatever the criterion makes of it. Where the frequency does
    not divide the range of a schedule, tfmot never comes to the final sparsity; here the end step
    is a pruning step in any case.

    Parameters
    ----------
    schedules : PruningSchedule, or mapping of str to PruningSchedule
        Of tensorflow_model_optimization.sparsity.keras; see `sparsity_schedule`. One for all
        `MaskedConv2D` layers, or one for each layer that is to be pruned.
    plan : callable, (weights, sparsity) -> PruningPlan
        `plan_layerwise`; `plan_global`, with one schedule; or any other by magnitude, such as
        `functools.partial(plan_blocks, block=(4, 4))`. In place of kernels it is given scores,
        zero for what is pruned; and the sparsity of one schedule or a list of them, one a layer.
    criterion : str
        A registered criterion. One that scores whole filters prunes whole filters.

    Raises
    ------
    ParameterError
        A schedule is none of tfmot's, or the criterion is unknown; when training begins, a layer is
        no `MaskedConv2D`.

    Examples
    --------
    >>> inputs = keras.Input((4, 4, 1))
    >>> conv = keras.layers.Conv2D(4, 2, kernel_initializer="random_normal", name="conv")
    >>> network = prunable(keras.Model(inputs, conv(inputs)))
    >>> network.compile("adam", loss="mse")
    >>> pruning = GradualPruning(sparsity_schedule("constant", 0.5))
    >>> x, y = np.zeros((2, 4, 4, 1), np.float32), np.zeros((2, 3, 3, 4), np.float32)
    >>> _ = network.fit(x, y, callbacks=[pruning], verbose=0)
    >>> int(network.get_layer("conv").mask.numpy().sum())
    7
    """

    def __init__(
        self,
        schedules: Any | Mapping[str, Any],
        plan: Rule = plan_layerwise,
        criterion: str = "magnitude",
    ):
        get_criterion(criterion)
        several = isinstance(schedules, Mapping)
        each = list(schedules.values()) if several else [schedules]
        if not each:
            raise ParameterError("no schedules given; give one, or one for each layer to prune")
        for schedule in each:
            if not callable(schedule) or not all(
                hasattr(schedule, name)
                for name in ("begin_step", "end_step", "frequency", "get_config")
            ):
                raise ParameterError(
                    f"{schedule!r} is no schedule of tensorflow_model_optimization.sparsity.keras; "
                    "see gradual.sparsity_schedule"
                )
        final = max(map(_final_step, each))
        super().__init__(list(schedules) if several else None, final, final)
        self.schedules = schedules
        self.plan = plan
        self.criterion = criterion

    def description(self) -> dict[str, Any]:
        """What tells this rule from another, as JSON values."""
        if isinstance(self.schedules, Mapping):
            schedules = {name: each.get_config() for name, each in self.schedules.items()}
        else:
            schedules = self.schedules.get_config()
        return {
            "rule": "gradual",
            "plan": _describe(self.plan),
            "criterion": self.criterion,
            "schedules": schedules,
        }

    def continues(self, first: PruningPlan, later: PruningPlan) -> bool:
        """Nothing has come back."""
        return first.keys() == later.keys() and not any(
            (later[name] & ~first[name]).any() for name in first
        )

    def _update(self, step: int) -> bool:
        sparsity: float | Sequence[float]
        if isinstance(self.schedules, Mapping):
            due = {name: each for name, each in self.schedules.items() if _is_due(each, step)}
            names, sparsity = list(due), [_sparsity(each, step) for each in due.values()]
        elif _is_due(self.schedules, step):
            names, sparsity = list(self.masked), _sparsity(self.schedules, step)
        else:
            names = []
        if not names:
            return False
        for name in names:
            self.kernel(name, step)  # refuses what is not finite
        weights = conv_weights(self.model)
        before = {name: self.masked[name].mask.numpy() for name in names}
        planned = self.plan(
            _ranked({name: weights[name] for name in names}, before, self.criterion), sparsity
        )
        # A plan, so that a layer left empty is an error.
        after = PruningPlan({name: before[name] & planned[name] for name in names})
        changed = [name for name in names if not np.array_equal(before[name], after[name])]
        for name in changed:
            self.masked[name].set_mask(after[name])
        return bool(changed)


def _ranked(
    weights: Mapping[str, ConvWeights], masks: Mapping[str, np.ndarray], criterion: str
) -> dict[str, ConvWeights]:
    """Scores in the place of kernels: above zero for what is left, zero for what is pruned."""
    left, found = {}, {}
    for name, each in weights.items():
        found[name] = masks[name].any(axis=(0, 1, 2))
        # Filters that are gone are no neighbours of the others.
        gamma = None if each.gamma is None else each.gamma[found[name]]
        left[name] = ConvWeights(each.kernel[..., found[name]], gamma=gamma)
    ranked = {}
    for name, scores in score(left, criterion).items():
        shape = masks[name].shape if scores.ndim == 4 else (1, 1, 1, masks[name].shape[-1])
        values = np.zeros(shape, scores.dtype)
        # A score can be zero, such as a filter's that is the median.
        values[..., found[name]] = np.maximum(scores, np.finfo(scores.dtype).tiny)
        if scores.ndim == 4:
            values[~masks[name]] = 0
        ranked[name] = ConvWeights(values)
    return ranked


def _is_due(schedule, step: int) -> bool:
    begin, end = schedule.begin_step, schedule.end_step
    if step < begin or 0 <= end < step:
        return False
    return (step - begin) % schedule.frequency == 0 or step == end


def _sparsity(schedule, step: int) -> float:
    # Tiny sums are slow to send to a GPU.
    with tf.device("CPU:0"):
        value = schedule(step)[1]
    # tfmot computes in float32; its shortest decimal is what was asked for at the end, so that
    # as many weights go as by a plan of that sparsity.
    return float(str(np.float32(value)))


def _final_step(schedule) -> int:
    begin, end = int(schedule.begin_step), int(schedule.end_step)
    if end < 0 or _sparsity(schedule, begin) == _sparsity(schedule, end):
        return begin
    return end


def _describe(plan: Any) -> Any:
    if isinstance(plan, functools.partial):
        return [_describe(plan.func), list(plan.args), plan.keywords]
    return getattr(plan, "__name__", type(plan).__name__)


def _tfmot():
    with warnings.catch_warnings():
        # It looks at TensorFlow's version in a way that Python 3.11 gives up.
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorflow_model_optimization.sparsity import keras as tfmot
    return tfmot
