"""Prune-and-regrow: sparse training that moves its weights to where they help most (RigL)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from l3prune.batches import Batches, signature
from l3prune.checks import check_whole
from l3prune.errors import L3PruneError, ParameterError
from l3prune.gradual import MaskUpdate
from l3prune.plan import PruningPlan


class RigL(MaskUpdate):
    """Moves the weights of sparse layers to where they help most (Evci et al., ICML 2020).

    Every `frequency` steps before `end_step` each layer drops the kept weights of the smallest
    magnitude, a fraction alpha / 2 * (1 + cos(pi * step / end_step)) of them rounded down, and
    grows as many where the magnitude of the loss's gradient is largest among those it does not
    keep. The number of weights of a layer never changes. What is grown begins at zero, with the
    optimizer's moments at zero; a weight that is dropped and grown at once stays as it is, as in
    the authors' code.

    The gradient is that of the batch that the next step trains on, with regard to the kernel
    without its mask; weight decay has none at zero. Moving statistics are left as they were.

    Parameters
    ----------
    end_step : int
        The authors take three quarters of the training.
    frequency : int
        Steps from one change to the next.
    alpha : float
        In (0, 1]: fraction at the start.
    layers : collection of str, or None
        `MaskedConv2D` layers, which hold the sparsity; None takes all that are trainable.
    batches : callable, first batch -> iterator of (inputs, targets); or None
        Where the gradient's batches are from; None takes what `training.fit` trains on.

    Raises
    ------
    ParameterError
        A value outside its range; in training, there are no batches or the loss is not one
        function.

    Examples
    --------
    >>> RigL(end_step=1000).fraction(500)
    0.15
    """

    def __init__(
        self,
        end_step: int,
        *,
        frequency: int = 100,
        alpha: float = 0.3,
        layers: Collection[str] | None = None,
        batches: Batches | None = None,
    ):
        check_whole("end_step", end_step, 1)
        check_whole("frequency", frequency, 1)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1:
            raise ParameterError(f"alpha={alpha!r} is not a number in (0, 1]")
        super().__init__(layers, end_step, 0)
        self.frequency = frequency
        self.alpha = alpha
        self.batches = batches
        self._gradients: Callable[..., Any] | None = None

    def fraction(self, step: int) -> float:
        """Fraction of a layer's kept weights that is dropped at a step."""
        return self.alpha / 2 * (1 + math.cos(math.pi * step / self.end_step))

    def description(self) -> dict[str, Any]:
        """What tells this rule from another, as JSON values."""
        return {
            "rule": "rigl",
            "end_step": int(self.end_step),
            "frequency": int(self.frequency),
            "alpha": self.alpha,
            "layers": self.layers,
        }

    def continues(self, first: PruningPlan, later: PruningPlan) -> bool:
        """Each layer has as many weights as before."""
        return first.keys() == later.keys() and all(
            first[name].sum() == later[name].sum() for name in first
        )

    def set_model(self, model):
        super().set_model(model)
        self._gradients = None

    def _update(self, step: int) -> bool:
        if step == 0 or step % self.frequency or step >= self.end_step:
            return False
        changed = False
        gradients = self._dense_gradients(step)
        for (name, layer), gradient in zip(self.masked.items(), gradients, strict=True):
            before = layer.mask.numpy()
            kernel = self.kernel(name, step)
            count = int(self.fraction(step) * before.sum())
            after = regrow(before, kernel, gradient, count)
            grown = after & ~before
            if not grown.any():
                continue
            layer.set_mask(after)
            for slot in _slots(self.model.optimizer, layer.kernel):
                slot.assign(np.where(grown, 0, slot.numpy()))
            changed = True
        return changed

    def _dense_gradients(self, step: int) -> list[np.ndarray]:
        """Of the loss on the next batch with regard to the kernels, pruned weights included."""
        batches = self.batches or self.training_batches
        if batches is None:
            raise ParameterError(
                "RigL has no batches for its gradient: give batches=, or train by training.fit"
            )
        network = self.model
        inputs, targets = next(batches(step))
        if self._gradients is None:
            self._gradients = _gradient_function(
                network, [layer.kernel for layer in self.masked.values()]
            )
        # Masks are among these, and what BatchNorm would make of one batch more.
        before = [(weight, weight.numpy()) for weight in network.non_trainable_weights]
        try:
            for layer in self.masked.values():
                # Pruned weights are zero, so the network computes the same without its masks.
                layer.mask.assign(tf.ones_like(layer.mask))
            gradients = [each.numpy() for each in self._gradients(inputs, targets)]
        finally:
            for weight, value in before:
                weight.assign(value)
        for name, gradient in zip(self.masked, gradients, strict=True):
            if not np.isfinite(gradient).all():
                raise L3PruneError(
                    f"training diverged before step {step} (the gradient of layer {name} is not "
                    "finite); take a smaller learning rate"
                )
        return gradients


def regrow(mask: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, count: int) -> np.ndarray:
    """A mask after dropping the smallest of the kept weights and growing as many.

    Of weights that are alike the later one is dropped, and the earlier one grown.

    Parameters
    ----------
    mask : np.ndarray of bool
    kernel, gradient : np.ndarray, the mask's shape
        Kept weights go by the kernel's magnitude; what is not kept, or was just dropped, comes by
        the gradient's.
    count : int
        How many, at most as many as the mask keeps.

    Returns
    -------
    mask : np.ndarray of bool
        Keeps as many as before.

    Examples
    --------
    >>> mask, kernel = np.array([True, True, False, False]), np.array([0.1, 0.5, 0.0, 0.0])
    >>> regrow(mask, kernel, np.array([0.0, 9.0, 1.0, -2.0]), 1).tolist()
    [False, True, False, True]
    """
    kept = np.flatnonzero(mask)
    strongest = np.argsort(-np.abs(kernel.ravel()[kept]), kind="stable")
    after = np.zeros(mask.size, bool)
    after[kept[strongest[: len(kept) - count]]] = True
    free = np.flatnonzero(~after)
    steepest = np.argsort(-np.abs(gradient.ravel()[free]), kind="stable")
    after[free[steepest[:count]]] = True
    return after.reshape(mask.shape)


def _gradient_function(network: keras.Model, kernels: list[Any]) -> Callable[..., Any]:
    if not callable(network.loss) and not isinstance(network.loss, str):
        raise ParameterError(
            f"RigL needs one loss function and the network is compiled with loss={network.loss!r}"
        )
    loss = keras.losses.get(network.loss)
    strategy = network.distribute_strategy

    def of_part(inputs, targets):
        context = tf.distribute.get_replica_context()
        number, count = context.replica_id_in_sync_group, context.num_replicas_in_sync
        size = tf.shape(targets)[0]
        begin, end = size * number // count, size * (number + 1) // count
        inputs, targets = tf.nest.map_structure(lambda each: each[begin:end], (inputs, targets))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernels)
            error = tf.reduce_mean(loss(targets, network(inputs, training=True)))
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, tape.gradient(error, kernels))

    @tf.function(input_signature=signature(network))
    def gradients(inputs, targets):
        found = strategy.run(of_part, args=(inputs, targets))
        return [strategy.experimental_local_results(each)[0] for each in found]

    return gradients


def _slots(optimizer, variable) -> list[Any]:
    """What an optimizer keeps for each element of a variable: Adam's two moments."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    index = inner._index_dict.get(inner._var_key(variable))
    if index is None:  # not trained
        return []
    # Every Keras optimizer has lists with one variable for each that it trains.
    lists = [
        each
        for each in vars(inner).values()
        if isinstance(each, list) and len(each) == len(inner._index_dict)
    ]
    slots = [each[index] for each in lists if hasattr(each[index], "assign")]
    return [slot for slot in slots if slot is not variable and slot.shape == variable.shape]
