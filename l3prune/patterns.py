"""Pruning plans that keep a pattern: n of every m weights, whole blocks. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from l3prune.checks import is_integer
from l3prune.criteria import ConvWeights
from l3prune.errors import ParameterError
from l3prune.plan import PruningPlan, above_percentile, each_layer, score


def plan_pattern(
    weights: Mapping[str, ConvWeights], n: int, m: int, criterion: str = "magnitude"
) -> PruningPlan:
    """Of every m consecutive input channels keep the n weights of the highest scores (n:m).

    At each position of the kernel and for each filter by itself, as hardware for 2:4 has it. Of two
    weights that score alike the earlier channel's stays. Where m does not divide the channels, the
    last r < m of them keep min(r, n): they are a group that zero channels fill up to m. A layer of
    fewer than m input channels is left as it is; the first layer of an audio network has one.

    Parameters
    ----------
    weights : mapping of str to ConvWeights
    n, m : int
        1 <= n <= m.
    criterion : str
        A registered criterion that scores single weights.

    Returns
    -------
    plan : PruningPlan
        Masks of the kernels' shapes.

    Raises
    ------
    ParameterError
        n or m is out of range, the criterion scores filters.

    Examples
    --------
    >>> layer = ConvWeights(np.array([0.1, -0.4, 0.2, 0.3]).reshape(1, 1, 4, 1))
    >>> plan_pattern({"conv": layer}, 2, 4)["conv"].ravel().tolist()
    [False, True, False, True]
    """
    if not is_integer(n) or not is_integer(m) or not 1 <= n <= m:
        raise ParameterError(
            f"n={n!r}, m={m!r}: a pattern keeps n of every m weights, whole numbers with "
            "1 <= n <= m; 2 and 4, say"
        )
    return PruningPlan(
        {
            layer: _keep_n_of_m(values, n, m)
            for layer, values in _weight_scores(weights, criterion).items()
        }
    )


def plan_blocks(
    weights: Mapping[str, ConvWeights],
    sparsity: float | Sequence[float],
    block: tuple[int, int],
    criterion: str = "magnitude",
) -> PruningPlan:
    """Prune each layer by whole blocks of input channels x filters, to its own sparsity.

    A block is at one position of the kernel and scores the mean of its weights' scores, since
    blocks at the edges are smaller where the block does not divide the layer, and sums would not
    compare. Which blocks stay is `plan_layerwise`'s percentile rule on the blocks of a layer, so
    the sparsity is that of blocks, and of weights where the block divides the layer.

    Parameters
    ----------
    weights : mapping of str to ConvWeights
        In the network's order.
    sparsity : float or sequence of float
        In [0, 1). One for all layers, or one a layer.
    block : tuple of int
        Input channels and filters of a block. A layer that has fewer is cut into blocks of what it
        has.
    criterion : str
        A registered criterion that scores single weights.

    Returns
    -------
    plan : PruningPlan
        Masks of the kernels' shapes.

    Raises
    ------
    ParameterError
        The block is not two whole numbers from 1 on, the criterion scores filters, or as
        `plan_layerwise`.

    Examples
    --------
    >>> layer = ConvWeights(np.array([[1.0, 2.0, 5.0], [3.0, 4.0, 1.0]])[None, None])
    >>> plan_blocks({"conv": layer}, 0.5, block=(2, 2))["conv"][0, 0].tolist()
    [[False, False, True], [False, False, True]]
    """
    if (
        not isinstance(block, Sequence)
        or len(block) != 2
        or not all(is_integer(side) and side >= 1 for side in block)
    ):
        raise ParameterError(
            f"block={block!r} is not two whole numbers from 1 on: input channels and filters"
        )
    scores = _weight_scores(weights, criterion)
    each = each_layer(sparsity, scores)
    return PruningPlan(
        {
            layer: _spread(above_percentile(_block_means(values, block), fraction), block, values)
            for (layer, values), fraction in zip(scores.items(), each, strict=True)
        }
    )


def _weight_scores(weights: Mapping[str, ConvWeights], criterion: str) -> dict[str, np.ndarray]:
    scores = score(weights, criterion)
    for layer, values in scores.items():
        if values.shape != weights[layer].kernel.shape:
            raise ParameterError(
                f"criterion {criterion} scores whole filters and a pattern is made of single "
                "weights; take one that scores these, such as magnitude"
            )
    return scores


def _keep_n_of_m(scores: np.ndarray, n: int, m: int) -> np.ndarray:
    rows, columns, channels, filters = scores.shape
    if channels < m:
        return np.ones(scores.shape, bool)
    missing = -channels % m
    # Channels that are not there come last in any order.
    full = np.pad(scores, ((0, 0), (0, 0), (0, missing), (0, 0)), constant_values=-np.inf).reshape(
        rows, columns, -1, m, filters
    )
    best = np.argsort(-full, axis=3, kind="stable")[:, :, :, :n]
    mask = np.zeros(full.shape, bool)
    np.put_along_axis(mask, best, True, axis=3)
    return mask.reshape(rows, columns, -1, filters)[:, :, :channels]


def _block_means(scores: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """(kh, kw, blocks of channels, blocks of filters) float64."""
    sums = scores.astype(np.float64)
    area = np.ones((1, 1, *scores.shape[2:]))
    for axis, side in zip((2, 3), block, strict=True):
        starts = np.arange(0, scores.shape[axis], side)
        sums = np.add.reduceat(sums, starts, axis=axis)
        area = np.add.reduceat(area, starts, axis=axis)
    return sums / area


def _spread(mask: np.ndarray, block: tuple[int, int], scores: np.ndarray) -> np.ndarray:
    """The mask of blocks as a mask of weights."""
    channels, filters = scores.shape[2:]
    return mask.repeat(block[0], axis=2).repeat(block[1], axis=3)[:, :, :channels, :filters]
