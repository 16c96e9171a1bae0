"""The point with the least sum of distances to others. NumPy only."""

from __future__ import annotations

import numpy as np

#: Weiszfeld's steps before Newton's are tried. Filters of networks need 2 to 20 in all.
_PATIENCE = 50

#: Steps after which the search for a geometric median ends wherever it is.
_MAX_STEPS = 1000

#: Filters nearer than this to a point, in units of the filters' spread, are at the point.
_COINCIDENT = 1e-13


def distances_to(points: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Euclidean distances of points, in rows, to one point.

    Examples
    --------
    >>> distances_to(np.array([[3.0, 4.0], [0.0, 0.0]]), np.zeros(2)).tolist()
    [5.0, 0.0]
    """
    offsets = points - point
    return np.sqrt(np.einsum("ij,ij->i", offsets, offsets))


def geometric_median_of(points: np.ndarray) -> np.ndarray:
    """The point with the least sum of distances to `points`, to 1e-10 of their spread.

    Weiszfeld's iteration from the mean, with the rule of Vardi & Zhang (PNAS 2000) where a point is
    hit. Where the median is one of the points that rule is also tried on the point nearest to each
    step's end: the iteration alone comes near such a median slowly, and never to it. It is slow
    where the median is just beside a point too; then Newton's steps are taken where they lead
    lower. Points on a line have the usual median, the middle of the two middle ones if their number
    is even; points that miss a line by 1e-6 of their spread may not reach the precision.

    Examples
    --------
    >>> corners = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> geometric_median_of(corners).round(9).tolist()
    [1.0, 1.0]
    """
    offsets = points - points[0]
    lengths = distances_to(points, points[0])
    spread = lengths.max()
    if spread == 0:
        return points[0]
    tiny = _COINCIDENT * spread
    line = offsets[lengths.argmax()] / spread
    along = offsets @ line
    if distances_to(offsets, along[:, None] * line).max() <= tiny:
        return points[0] + np.median(along) * line

    def pull(point: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Directions to the points elsewhere, 1 / distance of each, number of points here."""
        distances = distances_to(points, point)
        elsewhere = distances > tiny
        inverse = 1 / distances[elsewhere]
        directions = (points[elsewhere] - point) * inverse[:, None]
        return directions, inverse, len(points) - len(inverse)

    median = points.mean(axis=0)
    tried = set()
    last = 0.0
    for count in range(_MAX_STEPS):
        nearest = int(distances_to(points, median).argmin())
        if nearest not in tried:
            tried.add(nearest)
            directions, _, here = pull(points[nearest])
            if np.linalg.norm(directions.sum(axis=0)) <= here * (1 + 1e-12):
                return points[nearest]
        directions, inverse, here = pull(median)
        force = directions.sum(axis=0)
        strength = np.linalg.norm(force)
        if strength <= here:
            break
        step = (1 - here / strength) * force / inverse.sum()
        length = float(np.linalg.norm(step))
        # Steps shrink geometrically, so what is still to go is known from the last two.
        done = length == 0 or (length < last and length**2 / (last - length) <= 1e-10 * spread)
        if count >= _PATIENCE and not here:
            newton = _newton(directions, inverse)
            # To rounding: at the median all sums are alike.
            total = distances_to(points, median + step).sum() * (1 + 1e-14)
            # Near a point a whole step can lead past it; then a part of the step does not.
            for part in 0.25 ** np.arange(12):
                if distances_to(points, median + part * newton).sum() <= total:
                    step = part * newton
                    # These steps shrink faster, so the last is more than what is still to go.
                    done = part == 1 and bool(np.linalg.norm(newton) <= 1e-10 * spread)
                    break
        median = median + step
        if done:
            break
        last = length
    return median


def _newton(directions: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Newton's step for the sum of distances to points in these directions, at 1 / `inverse`.

    The Hessian is the sum of inverse * (1 - direction directionᵀ). The gradient is a sum of
    directions and so is the step, which leaves a system as large as there are points.
    """
    system = inverse.sum() * np.eye(len(inverse)) - inverse[:, None] * (directions @ directions.T)
    try:
        return np.linalg.solve(system, np.ones(len(inverse))) @ directions
    except np.linalg.LinAlgError:
        return np.full(directions.shape[1], np.inf)
