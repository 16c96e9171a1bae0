"""What the made-up objects of videos look like: one look for each class of `sounds`, one besides.

A look is told by its outline and its pattern. Hue, size and rotation are drawn for each object and
say nothing about its class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Look = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Coordinates x, y of pixels, in radii from the object's centre -> two distances in radii: how far
a pixel is inside the outline, and how far inside the light parts of the pattern. Negative is
outside. No outline goes beyond a radius of 1, or the edge of the drawn patch would cut it."""


def _slats(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A square with slats."""
    return 0.7 - np.maximum(np.abs(x), np.abs(y)), _stripes(y, 0.35)


def _triangle(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A triangle with a dark triangle in its middle."""
    angles = np.pi * np.array([1 / 2, 7 / 6, 11 / 6], np.float32)
    across = np.max([np.cos(angle) * x + np.sin(angle) * y for angle in angles], axis=0)
    return 0.5 - across, across - 0.22


def _balls(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Six balls in a circle, each with a dark rim."""
    angles = np.pi * np.arange(6, dtype=np.float32) / 3
    nearest = np.min(
        [np.hypot(x - 0.7 * np.cos(angle), y - 0.7 * np.sin(angle)) for angle in angles], axis=0
    )
    return 0.29 - nearest, 0.17 - nearest


def _star(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A star of five points with a dark centre."""
    distance = np.hypot(x, y)
    fifths = np.arctan2(y, x) * (5 / (2 * np.pi))
    reach = 0.4 + 1.1 * np.abs(fifths - np.round(fifths))
    return reach - distance, distance - 0.28


def _spiral(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A disc with a spiral."""
    distance = np.hypot(x, y)
    return 0.9 - distance, _stripes(distance - np.arctan2(y, x) * (0.4 / (2 * np.pi)), 0.4)


def _gear(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A gear: a ring with eight teeth, plain."""
    distance = np.hypot(x, y)
    outer = 0.78 + 0.17 * np.clip(3 * np.cos(8 * np.arctan2(y, x)), -1, 1)
    return np.minimum(outer - distance, distance - 0.35), np.ones_like(distance)


def _rays(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight thin rays, plain."""
    angles = np.pi * np.arange(4, dtype=np.float32) / 4
    beside = np.min([np.abs(np.cos(angle) * x + np.sin(angle) * y) for angle in angles], axis=0)
    return np.minimum(0.95 - np.hypot(x, y), 0.09 - beside), np.ones_like(beside)


def _cross(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A cross, chequered."""
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.minimum(0.92 - long, 0.32 - short), 8 * _stripes(x, 0.42) * _stripes(y, 0.42)


def _rings(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A disc of concentric rings."""
    distance = np.hypot(x, y)
    return 0.95 - distance, _stripes(distance, 0.45)


def _diamond(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A long diamond with dots."""
    dots = np.hypot(x - 0.36 * np.round(x / 0.36), y - 0.36 * np.round(y / 0.36))
    return 0.75 * (0.97 - np.abs(x) - 1.4 * np.abs(y)), 0.12 - dots


def _pebble(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An ellipse, plain."""
    return 0.65 * (0.95 - np.hypot(x, y / 0.65)), np.ones_like(x * y)


LOOKS: dict[str, Look] = {
    "air_conditioner": _slats,
    "car_horn": _triangle,
    "children_playing": _balls,
    "dog_bark": _star,
    "drilling": _spiral,
    "engine_idling": _gear,
    "gun_shot": _rays,
    "jackhammer": _cross,
    "siren": _rings,
    "street_music": _diamond,
    "pebble": _pebble,
}
"""Label -> look; a pebble makes no sound."""


def paint(
    pixels: np.ndarray,
    label: str,
    centre: tuple[float, float],
    radius: float,
    *,
    turn: float,
    colours: np.ndarray,
    opacity: float = 1.0,
) -> None:
    """Draw an object into a picture, with smooth edges.

    Parameters
    ----------
    pixels : np.ndarray [shape=(rows, columns, 3), dtype=uint8]
        Changed in place. What lies outside is cut off.
    label : str
        A key of `LOOKS`.
    centre : tuple of float
        Row and column, in pixels.
    radius : float
        Pixels.
    turn : float
        Rotation in radians.
    colours : np.ndarray [shape=(2, 3), dtype=float32]
        RGB, 0 … 255, of the pattern's light and dark parts.
    opacity : float
        0 … 1.

    Examples
    --------
    >>> pixels = np.zeros((9, 9, 3), np.uint8)
    >>> colours = np.array([[200, 100, 0], [0, 0, 0]], np.float32)
    >>> paint(pixels, "pebble", (4, 4), 3, turn=0, colours=colours)
    >>> pixels[4, 4].tolist(), pixels[0, 0].tolist()
    ([200, 100, 0], [0, 0, 0])
    """
    top, left = (max(int(np.floor(c - radius)), 0) for c in centre)
    bottom, right = (max(int(np.ceil(c + radius)) + 1, 0) for c in centre)
    patch = pixels[top:bottom, left:right]
    down = (np.arange(top, top + patch.shape[0], dtype=np.float32)[:, None] - centre[0]) / radius
    along = (np.arange(left, left + patch.shape[1], dtype=np.float32)[None] - centre[1]) / radius
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    inside, light = LOOKS[label](cos * along + sin * down, cos * down - sin * along)
    # A pixel that an edge runs through belongs to both sides, by its distance from the edge.
    cover = opacity * np.clip(inside * radius + 0.5, 0, 1)[..., None]
    share = np.clip(light * radius + 0.5, 0, 1)[..., None]
    colour = colours[1] + share * (colours[0] - colours[1])
    patch[...] = patch + cover * (colour - patch) + 0.5


def _stripes(distance: np.ndarray, period: float) -> np.ndarray:
    """Stripes: how far inside a light one a point is, at a distance along them."""
    phase = distance / period
    return period * (0.25 - np.abs(phase - np.round(phase)))
