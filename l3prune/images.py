"""Embeddings of images by L3-Net's image network, as OpenL3 computes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from l3prune.audio import as_array
from l3prune.embedding import (
    check_batch_size,
    is_positive,
    output_path,
    pair_up,
    warn,
)
from l3prune.engines import at_once, choose_model
from l3prune.errors import ParameterError
from l3prune.files import atomic_write, is_file
from l3prune.networks import inference, network_config
from l3prune.networks.vision import IMAGE_SIZE
from l3prune.sparse import SparseModel

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")

#: Larger images are first scaled so that their shorter side has so many pixels.
_SHORTER_SIDE = 256


def prepare_images(images: np.ndarray) -> np.ndarray:
    """Images as the network takes them.

    Those of another size than 224 x 224 are scaled (bilinear, antialiased) until the shorter side
    has 256 pixels, and cut to their middle.

    Parameters
    ----------
    images : np.ndarray, (height, width, 3) or (n, height, width, 3)
        Unsigned integers from 0 to the type's largest; signed ones from minus that to it; floats in
        [-1, 1]. Floats beyond are divided by the largest magnitude among all of them.

    Returns
    -------
    images : np.ndarray, (n, 224, 224, 3) float32
        In [-1, 1].

    Raises
    ------
    ParameterError
        Another shape or type, a side shorter than 224 pixels, or values that are not finite.

    Examples
    --------
    >>> white = np.full((300, 400, 3), 255, np.uint8)
    >>> prepare_images(white).shape, round(float(prepare_images(white).min()), 4)
    ((1, 224, 224, 3), 1.0)
    """
    images, factor, offset = _scaling(images)
    return _prepare(images, factor, offset)


def _scaling(images: Any) -> tuple[np.ndarray, float, float]:
    """Images (n, height, width, 3), and what brings their values into [-1, 1]."""
    images = as_array(images)
    if images.ndim not in (3, 4) or images.shape[-1] != 3 or not images.size:
        raise ParameterError(
            f"image of shape {images.shape} given; give (height, width, 3) or several, "
            "(n, height, width, 3)"
        )
    kind = images.dtype.kind
    if kind not in "uif":
        raise ParameterError(f"image is {images.dtype}; give integers, or floats in [-1, 1]")
    height, width = images.shape[-3:-1]
    if min(height, width) < IMAGE_SIZE:
        raise ParameterError(
            f"image of {height} x {width} pixels given; both sides must have at least {IMAGE_SIZE}"
        )
    largest = (
        max(float(images.max()), -float(images.min()), 1.0)
        if kind == "f"
        else float(np.iinfo(images.dtype).max)
    )
    if not np.isfinite(largest):
        raise ParameterError("image has NaN or infinite values; repair or leave it out")
    images = images.reshape(-1, height, width, 3)
    return (images, 2 / largest, -1.0) if kind == "u" else (images, 1 / largest, 0.0)


def _prepare(images: np.ndarray, factor: float, offset: float) -> np.ndarray:
    values = images.astype(np.float32) * np.float32(factor) + np.float32(offset)
    height, width = values.shape[1:3]
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        import tensorflow as tf

        scale = _SHORTER_SIDE / min(height, width)
        size = round(height * scale), round(width * scale)
        values = tf.image.resize(values, size, antialias=True).numpy()
        top, left = ((side - IMAGE_SIZE) // 2 for side in size)
        values = values[:, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    return np.clip(values, -1, 1)


def get_image_embedding(
    image,
    frame_rate=None,
    model: str | os.PathLike[str] | keras.Model | None = None,
    *,
    batch_size: int = 32,
    **weights: Any,
):
    """Embedding of each image.

    Parameters
    ----------
    image : np.ndarray, (height, width, 3) or (n, height, width, 3); or list of these
        See `prepare_images`.
    frame_rate : float, list of float, or None
        Images a second, where they are frames of a video; one for all, or one each.
    model : str, path-like, keras.Model or None
        See `engines.load_model`. None takes OpenL3's published weights.
    batch_size : int
        Images computed at once, at most: fewer where they would take much memory.
    **weights
        Which of OpenL3's, without a `model`: `input_repr`, `content_type`, `embedding_size` (8192
        or 512); see `models.select_image`.

    Returns
    -------
    embedding : np.ndarray, (n, embedding_size) float32; or list of these
    timestamps : np.ndarray, (n,) float64; or list of these; None without a `frame_rate`
        Seconds.

    Raises
    ------
    ParameterError
        An argument outside its range.
    L3PruneError
        See `weights.load_network` and `models.fetch`.

    Warns
    -----
    L3PruneWarning
        All pixels are zero.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> network = create_network("vision", embedding_size=512)
    >>> get_image_embedding(np.ones((240, 320, 3), np.uint8), model=network)[0].shape
    (1, 512)
    """
    pictures, rates, several = pair_up(image, frame_rate, "images", "frame rates")
    for rate in rates:
        if rate is not None and not is_positive(rate):
            raise ParameterError(f"frame_rate={rate!r} is not a positive number of images a second")
    check_batch_size(batch_size)
    network = choose_model(model, weights, "image")
    if isinstance(network, SparseModel) or network_config(network).name != "vision":
        name = getattr(network, "name", "in a packed file")
        raise ParameterError(f"network {name!r} is no network of images")
    infer = inference(network)
    size = min(batch_size, at_once(network))
    embeddings, times = [], []
    for picture, rate in zip(pictures, rates, strict=True):
        frames, factor, offset = _scaling(picture)
        parts = [
            infer(_prepare(frames[start : start + size], factor, offset))
            for start in range(0, len(frames), size)
        ]
        if not frames.any():
            warn("all pixels are zero")
        embeddings.append(np.concatenate(parts))
        times.append(None if rate is None else np.arange(len(frames)) / rate)
    if not several:
        return embeddings[0], times[0]
    return embeddings, None if frame_rate is None else times


def process_image_file(
    path: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    suffix: str | None = None,
    model: str | os.PathLike[str] | keras.Model | None = None,
    *,
    overwrite: bool = True,
    **weights: Any,
) -> Path:
    """Embed an image file; write `embedding` (1, size) as .npz, atomically.

    Parameters
    ----------
    path : str or path-like
        What Pillow reads (png, jpeg, …). Transparency is dropped, grey becomes colour.
    output_dir, suffix, overwrite
        As in `embedding.process_file`.
    model, **weights
        See `get_image_embedding`.

    Returns
    -------
    output : pathlib.Path

    Raises
    ------
    ParameterError
        The file cannot be read; see `get_image_embedding` too.
    L3PruneError
        The output cannot be written.

    Examples
    --------
    >>> process_image_file("/nowhere/a.png")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such image file: /nowhere/a.png
    """
    output = output_path(path, output_dir, suffix)
    if output.exists() and not overwrite:
        return output
    image = load_image(path)
    try:
        embedding, _ = get_image_embedding(image, model=model, **weights)
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from error
    with atomic_write(output) as temporary, temporary.open("wb") as target:
        np.savez(target, embedding=embedding)
    return output


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Decode an image file (png, jpeg, bmp, tiff, webp, gif), (height, width, 3) uint8 or uint16.

    Raises
    ------
    ParameterError
        The file is missing, is no image file, is damaged, or has too many pixels.

    Examples
    --------
    >>> load_image("/nowhere/a.png")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: no such image file: /nowhere/a.png
    """
    import warnings

    from PIL import Image

    path = Path(path)
    if not is_file(path):
        raise ParameterError(f"no such image file: {path}")
    try:
        with warnings.catch_warnings():
            # A picture that unpacks to gigabytes is refused, not warned of.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Not all formats: for some, Pillow starts other programs.
            with Image.open(path, formats=_FORMATS) as picture:
                if picture.mode.startswith("I;16"):  # grey, of 16 bits
                    return np.repeat(np.asarray(picture, np.uint16)[..., np.newaxis], 3, axis=2)
                return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise ParameterError(f"{path} cannot be decoded as an image ({error})") from error
