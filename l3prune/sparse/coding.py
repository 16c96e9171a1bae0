"""How a packed file stores a kernel: rounded values, and the gaps between them. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from l3prune.errors import ParameterError

#: What a weight can be stored as; int8 has a float32 scale for each filter.
VALUES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
}

#: Instead of the number of low bits: all weights are stored, zeros too, and no gaps.
DENSE = 255

#: Gaps have at most so many low bits.
MAX_LOW = 15

#: Gaps are decoded so many bytes at a time, for which 20 MB are enough.
_BLOCK = 2**16


class Coded(NamedTuple):
    """A kernel as it is stored, filter after filter.

    Attributes
    ----------
    low : int
        Low bits of a gap, or `DENSE`.
    nonzeros : int
    scales : np.ndarray, (filters,) float32, or None
        Of int8 values.
    stored : np.ndarray, (nonzeros,) or for `DENSE` (weights,), of a type in `VALUES`
    low_bits : np.ndarray of uint8
        `low` bits of each gap, the lowest bit first, eight to a byte from the lowest bit on.
    gaps : np.ndarray of uint8
        For each non-zero as many zero bits as gap >> low, and a one, packed likewise.

    Examples
    --------
    >>> coded, _ = encode(np.array([[0, 0, 0, 5, 0, 7]], np.float32), "float32")
    >>> coded.stored
    array([5., 7.], dtype=float32)
    >>> coded.low, f"{coded.low_bits[0]:b}", f"{coded.gaps[0]:b}"  # gaps of 3 and 1
    (1, '11', '110')
    """

    low: int
    nonzeros: int
    scales: np.ndarray | None
    stored: np.ndarray
    low_bits: np.ndarray
    gaps: np.ndarray


@dataclass(frozen=True)
class Loss:
    """What storing a kernel changed.

    Attributes
    ----------
    zeroed : int
        Weights other than zero that became zero, because they are nearer to it than to the smallest
        value that can be stored.
    largest : float
        Largest absolute difference of a weight.
    relative : float
        Root mean square of the differences over that of the weights; 0 if all weights are zero.

    Examples
    --------
    >>> encode(np.array([[3, 4, 5e-8]], np.float32), "float16")[1].zeroed
    0
    >>> encode(np.array([[3, 4, 2e-8]], np.float32), "float16")[1].zeroed
    1
    """

    zeroed: int
    largest: float
    relative: float


def encode(exact: np.ndarray, values: str) -> tuple[Coded, Loss]:
    """Round a kernel and code where its non-zeros are, in the fewest bytes.

    Parameters
    ----------
    exact : np.ndarray, (filters, taps) float32
        Finite.
    values : str
        A key of `VALUES`.

    Raises
    ------
    ParameterError
        A weight is beyond what `values` can hold.

    Examples
    --------
    >>> coded, loss = encode(np.array([[127, -12.25], [0, 0]], np.float32), "int8")
    >>> coded.scales, coded.stored
    (array([1., 0.], dtype=float32), array([127, -12,   0,   0], dtype=int8))
    >>> loss.largest
    0.25
    """
    stored, scales = _round(exact, values)
    with np.errstate(over="ignore"):
        restored = stored.astype(np.float32) * (1 if scales is None else scales[:, None])
    if not np.isfinite(restored).all():
        raise ParameterError(
            f"a weight of {np.abs(exact).max():g} is beyond what values={values!r} can hold; save "
            'with values="float32"'
        )
    keep = restored != 0
    nonzeros = int(keep.sum())
    # In float64 the squares of the smallest numbers do not vanish.
    error = np.subtract(restored, exact, dtype=np.float64)
    norm = np.linalg.norm(exact.astype(np.float64))
    loss = Loss(
        int(np.count_nonzero(exact)) - nonzeros,
        float(np.abs(error).max()),
        float(np.linalg.norm(error) / norm) if norm else 0.0,
    )
    low, low_bits, gaps = _encode_gaps(np.flatnonzero(keep))
    index = sum(-(-len(each) // 4) * 4 for each in (low_bits, gaps))
    if (stored.size - nonzeros) * stored.itemsize <= index:
        none = gaps[:0]
        return Coded(DENSE, nonzeros, scales, stored.ravel(), none, none), loss
    return Coded(low, nonzeros, scales, stored[keep], low_bits, gaps), loss


def decode(coded: Coded, taps: int, filters: int) -> np.ndarray:
    """The kernel that was coded, (taps, filters) float32.

    Nothing is believed of `coded` but the lengths of its arrays: as many `stored` as `nonzeros` or,
    for `DENSE`, weights; as many scales as filters; `low` bits for each non-zero.

    Raises
    ------
    ParameterError
        Gaps lead beyond the kernel or are more or fewer than `nonzeros`; a value is not finite, or
        zero where only non-zeros are stored, or -128; a scale is negative.

    Examples
    --------
    >>> coded, _ = encode(np.array([[0, 0, 0, 5, 0, 7]], np.float32), "float32")
    >>> decode(coded, 6, 1).ravel()
    array([0., 0., 0., 5., 0., 7.], dtype=float32)
    """
    stored = coded.stored
    scales = np.ones(filters, np.float32) if coded.scales is None else coded.scales
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ParameterError("a scale is negative or not finite")
    if stored.dtype.kind == "i" and (stored == -128).any():
        raise ParameterError("a value is -128; allowed are -127 to 127")
    kernel = np.zeros((taps, filters), np.float32)
    # Hostile values times hostile scales may overflow; the checks find what comes of it.
    with np.errstate(over="ignore", invalid="ignore"):
        if coded.low == DENSE:
            np.multiply(stored.reshape(filters, taps).T, scales, out=kernel)
            found, valid = int(np.count_nonzero(kernel)), bool(np.isfinite(kernel).all())
        else:
            found, valid = 0, True
            for positions in _decode_gaps(coded, taps * filters):
                columns, rows = np.divmod(positions, taps)
                restored = stored[found : found + len(positions)] * scales[columns]
                valid = valid and bool((np.isfinite(restored) & (restored != 0)).all())
                kernel[rows, columns] = restored
                found += len(positions)
    if found != coded.nonzeros or not valid:
        raise ParameterError(f"its weights are not {coded.nonzeros} finite numbers other than zero")
    return kernel


def _round(exact: np.ndarray, values: str) -> tuple[np.ndarray, np.ndarray | None]:
    if values != "int8":
        with np.errstate(over="ignore"):
            stored = exact.astype(VALUES[values])
        # Masks that were multiplied with weights leave negative zeros.
        stored[stored == 0] = 0
        return stored, None
    peaks = np.abs(exact).max(axis=1).astype(np.float64)
    scales = (peaks / 127).astype("<f4")
    # Scales below 1e-38 are coarse: rounded down, they might make more than 127 of a weight.
    short = peaks > 127.5 * scales.astype(np.float64)
    scales[short] = np.nextafter(scales[short], np.float32(np.inf))
    divisors = np.where(scales == 0, 1, scales).astype(np.float64)
    return np.rint(exact / divisors[:, None]).astype(np.int8), scales


def _encode_gaps(positions: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Ascending positions as (number of low bits, low bits, gaps), the shortest way."""
    count = len(positions)
    if not count:
        return 0, np.zeros(0, np.uint8), np.zeros(0, np.uint8)
    gaps = np.diff(positions, prepend=-1) - 1
    low = min(range(MAX_LOW + 1), key=lambda low: count * low + int((gaps >> low).sum()))
    ends = np.cumsum(gaps >> low) + np.arange(count)
    unary = np.zeros(ends[-1] + 1, np.uint8)
    unary[ends] = 1
    pairs = (gaps & 0xFFFF).astype("<u2").view(np.uint8).reshape(count, 2)
    bits = np.unpackbits(pairs, axis=1, bitorder="little")[:, :low]
    return low, np.packbits(bits, bitorder="little"), np.packbits(unary, bitorder="little")


def _decode_gaps(coded: Coded, weights: int) -> Iterator[np.ndarray]:
    """Yield the non-zeros' positions, ascending, int64, a block at a time."""
    low = coded.low
    count = rest = 0
    for start in range(0, len(coded.gaps), _BLOCK):
        block = coded.gaps[start : start + _BLOCK]
        ends = np.flatnonzero(np.unpackbits(block, bitorder="little"))
        if not len(ends):
            continue
        if count + len(ends) > coded.nonzeros:
            raise ParameterError(f"it has more gaps than its {coded.nonzeros} non-zeros")
        first, last = count * low, (count + len(ends)) * low
        bits = np.unpackbits(coded.low_bits[first // 8 : -(-last // 8)], bitorder="little")
        pairs = np.zeros((len(ends), 16), np.uint8)
        pairs[:, :low] = bits[first % 8 :][: last - first].reshape(len(ends), low)
        rests = np.packbits(pairs, axis=1, bitorder="little").view("<u2")[:, 0]
        rests = rest + np.cumsum(rests, dtype=np.int64)
        numbers = np.arange(count, count + len(ends))
        # Gaps and non-zeros so far; the ends have one bit for each non-zero before them.
        positions = ((ends + 8 * start - numbers) << low) + rests + numbers
        if positions[-1] >= weights:
            raise ParameterError(f"a weight's place is beyond the {weights} of the kernel")
        yield positions
        count += len(ends)
        rest = int(rests[-1])
