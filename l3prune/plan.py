"""Pruning plans: from scores to masks. NumPy only."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from l3prune.criteria import ConvWeights, get_criterion
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write

#: Largest plan that is read from a file: 2^31 weights, far above any network for audio.
_MAX_MASK_SIZE = 2**31


@dataclass(frozen=True, eq=False)
class PruningPlan(Mapping[str, np.ndarray]):
    """Which weights stay: layer name -> read-only boolean mask, True = keep.

    A mask has the kernel's shape, or (filters,) for whole filters; both broadcast on a kernel
    whose last axis is the filters.

    Parameters
    ----------
    masks : mapping of str to np.ndarray of bool
        Copied.

    Raises
    ------
    ParameterError
        A mask is not boolean, not (filters,) or (kh, kw, in_channels, filters), or keeps nothing.

    Examples
    --------
    >>> plan = PruningPlan({"conv_1": np.array([True, False])})
    >>> plan["conv_1"].mean()
    np.float64(0.5)
    """

    masks: Mapping[str, np.ndarray]

    def __post_init__(self):
        masks = {}
        for name, mask in self.masks.items():
            mask = np.array(mask)
            if mask.dtype != bool or mask.ndim not in (1, 4):
                raise ParameterError(
                    f"mask of layer {name} has type {mask.dtype} and shape {mask.shape}; allowed "
                    "are booleans of shape (filters,) or (kh, kw, in_channels, filters)"
                )
            if not mask.any():
                raise ParameterError(
                    f"layer {name} would lose all its weights; ask for less sparsity there"
                )
            mask.flags.writeable = False
            masks[name] = mask
        object.__setattr__(self, "masks", MappingProxyType(masks))

    def __getitem__(self, layer: str) -> np.ndarray:
        return self.masks[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.masks)

    def __len__(self) -> int:
        return len(self.masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PruningPlan):
            return NotImplemented
        return list(self) == list(other) and all(
            np.array_equal(self[layer], other[layer]) for layer in self
        )

    def __str__(self) -> str:
        """A row a layer: elements kept, all, sparsity in percent.

        Examples
        --------
        >>> print(PruningPlan({"conv_1": np.array([True, False, True, True])}))
        layer        kept    of  sparsity
        conv_1          3     4   25.00 %
        all layers      3     4   25.00 %
        """
        counts = [(layer, int(mask.sum()), mask.size) for layer, mask in self.items()]
        counts.append(
            ("all layers", sum(kept for _, kept, _ in counts), sum(size for *_, size in counts))
        )
        width = max(len(layer) for layer, _, _ in counts)
        digits = len(str(counts[-1][2])) + 5
        lines = [f"{'layer':{width}}{'kept':>{digits}}{'of':>{digits}}  sparsity"]
        for layer, kept, size in counts:
            percent = 100 * (1 - kept / max(size, 1))
            lines.append(f"{layer:{width}}{kept:{digits}}{size:{digits}}{percent:8.2f} %")
        return "\n".join(lines)

    __hash__ = None  # type: ignore[assignment]  # compared by content, so not hashable

    def __and__(self, other: PruningPlan) -> PruningPlan:
        """Keep what both keep; a layer that one plan does not name is as the other has it."""
        masks = {**self.masks, **other.masks}
        for layer in self.masks.keys() & other.masks.keys():
            first, second = self[layer], other[layer]
            if first.shape[-1] != second.shape[-1] or (
                first.ndim == second.ndim and first.shape != second.shape
            ):
                raise ParameterError(
                    f"layer {layer}: masks of shapes {first.shape} and {second.shape} "
                    "do not belong to one kernel"
                )
            masks[layer] = first & second
        return PruningPlan(masks)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as .npz, one bit a mask element, atomically."""
        arrays: dict[str, Any] = {}
        for layer, mask in self.items():
            arrays[f"{layer}.bits"] = np.packbits(mask)
            arrays[f"{layer}.shape"] = np.array(mask.shape, np.int64)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningPlan:
        """Read a plan that `save` wrote.

        Raises
        ------
        L3PruneError
            The file is missing or is no plan.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                # One bit a weight, and NumPy unpacks before anything can be checked.
                if sum(member.file_size for member in archive.infolist()) > _MAX_MASK_SIZE // 8:
                    raise ValueError("it unpacks to more than any network's masks")
            with np.load(Path(path), allow_pickle=False) as arrays:
                masks = {}
                for key in arrays.files:
                    if not key.endswith(".bits"):
                        continue
                    layer = key.removesuffix(".bits")
                    shape = tuple(int(n) for n in arrays[f"{layer}.shape"])
                    size = int(np.prod(shape, dtype=object))
                    bits = arrays[key]
                    if (
                        min(shape, default=0) < 1
                        or size > _MAX_MASK_SIZE
                        or len(bits) != -(-size // 8)
                    ):
                        raise ValueError(f"the mask of {layer} does not fit its shape")
                    masks[layer] = np.unpackbits(bits, count=size).astype(bool).reshape(shape)
        except FileNotFoundError as error:
            raise L3PruneError(f"no such plan: {path}") from error
        except (
            *(OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError, RuntimeError),
            *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
        ) as error:
            raise L3PruneError(f"{path} is not a pruning plan: {error}") from error
        if not masks:
            raise L3PruneError(f"{path} is not a pruning plan: it has no masks")
        return cls(masks)


def plan_layerwise(
    weights: Mapping[str, ConvWeights],
    sparsity: float | Sequence[float],
    criterion: str = "magnitude",
) -> PruningPlan:
    """Prune each layer to its own sparsity, by EdgeL3's percentile rule.

    The threshold is the sparsity's percentile of the layer's scores with 'nearest' interpolation,
    so that it is one of the scores, and what is strictly greater stays. Sparsity 0 keeps all.

    Parameters
    ----------
    weights : mapping of str to ConvWeights
        In the network's order, as `graph.conv_weights` gives them.
    sparsity : float or sequence of float
        In [0, 1). One for all layers, or one a layer.
    criterion : str
        A registered criterion. One that scores whole filters masks whole filters.

    Returns
    -------
    plan : PruningPlan

    Raises
    ------
    ParameterError
        Wrong number of sparsities, a sparsity outside [0, 1), a layer left empty.

    Examples
    --------
    >>> layer = ConvWeights(np.array([0.1, -0.4, 0.2, 0.3, 0.5]).reshape(1, 1, 1, 5))
    >>> plan_layerwise({"conv": layer}, 0.5)["conv"].ravel().tolist()
    [False, True, False, False, True]
    """
    scores = score(weights, criterion)
    each = each_layer(sparsity, scores)
    return PruningPlan(
        {
            layer: above_percentile(values, fraction)
            for (layer, values), fraction in zip(scores.items(), each, strict=True)
        }
    )


def plan_global(
    weights: Mapping[str, ConvWeights], sparsity: float, criterion: str = "magnitude"
) -> PruningPlan:
    """Prune all layers to one overall sparsity, with one threshold for all their scores.

    Overall is the fraction of all weights; of all filters for a criterion that scores filters.
    The rule is `plan_layerwise`'s on all scores together; a layer that it would empty keeps its
    highest score.

    Parameters
    ----------
    weights : mapping of str to ConvWeights
    sparsity : float
        In [0, 1).
    criterion : str
        A registered criterion.

    Returns
    -------
    plan : PruningPlan

    Raises
    ------
    ParameterError
        The sparsity is outside [0, 1), or the criterion is unknown.

    Examples
    --------
    >>> small = ConvWeights(np.array([0.1, 0.2]).reshape(1, 1, 1, 2))
    >>> large = ConvWeights(np.array([0.3, 0.4]).reshape(1, 1, 1, 2))
    >>> plan = plan_global({"a": small, "b": large}, 0.5)
    >>> plan["a"].ravel().tolist(), plan["b"].ravel().tolist()
    ([False, True], [False, True])
    """
    scores = score(weights, criterion)
    together = np.concatenate([values.ravel() for values in scores.values()])
    threshold = _threshold(together, check_fraction(sparsity))
    return PruningPlan(
        {layer: values > min(threshold, _below(values.max())) for layer, values in scores.items()}
    )


def _below(value: np.floating) -> np.floating:
    return np.nextafter(value, -np.inf, dtype=value.dtype)


def score(
    weights: Mapping[str, ConvWeights], criterion: str, *, filters: bool = False
) -> dict[str, np.ndarray]:
    """Every layer's scores by a registered criterion.

    Parameters
    ----------
    weights : mapping of str to ConvWeights
    criterion : str
    filters : bool
        Whole filters are to be ranked: "random" then gives the mean of what it draws for a filter's
        weights, which orders filters at random too.

    Returns
    -------
    scores : dict of str to np.ndarray
        The kernel's shape or (filters,), as the criterion has it.

    Raises
    ------
    ParameterError
        No layers, an unknown criterion, one that cannot score a layer, weights that are not finite.

    Examples
    --------
    >>> score({"conv": ConvWeights(np.array([[[[3.0, -1.0]]]]))}, "l1")["conv"].tolist()
    [3.0, 1.0]
    """
    function = get_criterion(criterion)
    if not weights:
        raise ParameterError("there are no convolutions to prune")
    scores = {}
    for layer, each in weights.items():
        try:
            values = function(each)
        except ParameterError as error:
            raise ParameterError(f"layer {layer}: {error}") from error
        if values.shape not in (each.kernel.shape, each.kernel.shape[-1:]):
            raise ParameterError(
                f"layer {layer}: criterion {criterion} gives scores of shape {values.shape} for a "
                f"kernel of shape {each.kernel.shape}; one a weight or one a filter is allowed"
            )
        if not np.isfinite(values).all():
            raise ParameterError(f"layer {layer} has NaN or infinite weights; nothing was pruned")
        if filters and criterion == "random":
            values = values.mean(axis=(0, 1, 2))
        scores[layer] = values
    return scores


def above_percentile(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """EdgeL3's percentile rule, as a mask: see `plan_layerwise`.

    Examples
    --------
    >>> above_percentile(np.array([1.0, 4.0, 2.0, 3.0, 5.0]), 0.5).tolist()
    [False, True, False, False, True]
    """
    return scores > _threshold(scores, sparsity)


def each_layer(
    value: float | Sequence[float] | None,
    layers: Collection[str],
    name: str = "sparsity",
    plural: str = "sparsities",
) -> list[float]:
    """One fraction a layer, from one for all or one a layer.

    Raises
    ------
    ParameterError
        A wrong number of fractions, or one outside [0, 1).

    Examples
    --------
    >>> each_layer(0.5, ["conv_1", "conv_2"])
    [0.5, 0.5]
    """
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
        return [check_fraction(value, name)] * len(layers)
    if len(value) != len(layers):
        raise ParameterError(
            f"{len(value)} {plural} given for {len(layers)} convolutions; "
            f"give {len(layers)} (in the order {', '.join(layers)}) or one for all"
        )
    return [check_fraction(each, name) for each in value]


def check_fraction(value: Any, name: str = "sparsity") -> float:
    """`value` as a float if it is in [0, 1).

    Raises
    ------
    ParameterError
        It is not.

    Examples
    --------
    >>> check_fraction(50)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: sparsity=50 is not in [0, 1) (percent? pass 0.5)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise ParameterError(f"{name}={value!r} is not a number in [0, 1)")
    if not 0 <= value < 1:
        hint = f" (percent? pass {value / 100:g})" if 1 <= value < 100 else ""
        raise ParameterError(f"{name}={value:g} is not in [0, 1){hint}")
    return float(value)


def _threshold(scores: np.ndarray, fraction: float) -> np.floating:
    if fraction == 0:
        return scores.dtype.type(-np.inf)
    # Not np.quantile: for float32 scores NumPy before 2.3 computes the rank in float32.
    rank = round((scores.size - 1) * fraction)
    return np.partition(scores, rank, axis=None)[rank]
