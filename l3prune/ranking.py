"""Label-weighted label-ranking average precision while a network trains; see `metrics.lwlrap`."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras


@keras.utils.register_keras_serializable(package="l3prune")
class Lwlrap(keras.metrics.Metric):
    """`metrics.lwlrap` of all clips of an epoch, whatever batches they come in.

    Examples
    --------
    >>> metric = Lwlrap()
    >>> metric.update_state([[1, 0, 0, 1]], [[0.9, 0.8, 0.1, 0.2]])
    >>> metric.update_state([[0, 1, 0, 0]], [[0.3, 0.2, 0.9, 0.1]])
    >>> round(float(metric.result()), 4)
    0.6667
    """

    def __init__(self, name="lwlrap", **kwargs):
        super().__init__(name=name, **kwargs)
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch: targets, 1 or 0, and scores, both (clips, classes)."""
        scores, own = tf.cast(y_pred, tf.float32), tf.cast(y_true, tf.float32) > 0.5
        # clip, class, each class that is ranked as high or higher
        higher = scores[:, tf.newaxis, :] >= scores[:, :, tf.newaxis]
        among_own = tf.math.count_nonzero(higher & own[:, tf.newaxis, :], axis=2, dtype=tf.float32)
        among_all = tf.math.count_nonzero(higher, axis=2, dtype=tf.float32)
        mask = tf.cast(own, tf.float32)
        # A score that is NaN is not as high as itself.
        self.total.assign_add(tf.reduce_sum(mask * tf.math.divide_no_nan(among_own, among_all)))
        self.count.assign_add(tf.reduce_sum(mask))

    def result(self):
        """The mean over all pairs of a clip and a class of its."""
        return tf.math.divide_no_nan(self.total, self.count)
