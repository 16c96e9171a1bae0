"""Teacher and student: train a pruned network to give the unpruned network's embedding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tf_keras as keras

from l3prune.errors import ParameterError
from l3prune.networks import inference, l3
from l3prune.training import Recipe, fit
from l3prune.weights import fingerprint
from l3prune.windows import WindowSource, batch_indices, cached_targets, open_windows


def distill(
    student: keras.Model,
    teacher: keras.Model,
    train: WindowSource | str | os.PathLike[str],
    validation: WindowSource | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    batch_size: int = 64,
    validation_batch_size: int = 64,
    train_epoch_size: int | None = None,
    validation_epoch_size: int | None = None,
    hop_size: float = 0.5,
    cache_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> list[dict[str, float]]:
    """Train `student` in place to minimise the squared distance to the teacher's embedding.

    The loss is the mean squared error over the embedding, the same tensor on both sides (plus the
    student's weight decay); the mean absolute error is reported. EdgeL3's own training compared
    the student's activated embedding with the teacher's raw one. The teacher sees each window
    once; its embeddings are kept in the cache folder. Masked layers keep their zeros.

    Parameters
    ----------
    student, teacher : keras.Model
        L3 networks with waveform input, the same front end and embedding.
    train, validation : WindowSource, str or path-like
        Windows, or folders of audio files or of AVC HDF5 shards; see `windows.open_windows`.
    output_dir : str or path-like
        Checkpoints and history; see `training.fit`.
    recipe : Recipe or None
        None takes EdgeL3's.
    batch_size, validation_batch_size : int
        Windows a step.
    train_epoch_size, validation_epoch_size : int or None
        Batches an epoch; None takes every window once. A shorter validation takes windows evenly
        over the data, always the same.
    hop_size : float
        Seconds between the windows of an audio file.
    cache_dir : str or path-like, or None
        None: `output_dir`/cache.
    resume : bool
        Go on with the run in `output_dir`.
    quiet : bool
        No progress bars.

    Returns
    -------
    history : list of dict
        See `training.fit`. `student` has the weights of the best validation loss.

    Raises
    ------
    ParameterError
        The networks do not compare, or a size is not positive.
    L3PruneError
        Data or folders are not what they should be.

    Examples
    --------
    >>> import tempfile, soundfile
    >>> from l3prune.networks import create_network
    >>> folder = Path(tempfile.mkdtemp())
    >>> noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    >>> (folder / "sounds").mkdir()
    >>> soundfile.write(folder / "sounds" / "noise.wav", noise, 8000)
    >>> teacher, student = (create_network("sea64", filters=[2] * 8) for _ in range(2))
    >>> recipe = Recipe(epochs=2, learning_rate=1e-3)
    >>> sides = [folder / "sounds"] * 2
    >>> len(distill(student, teacher, *sides, folder / "out", recipe=recipe, quiet=True))
    2
    """
    recipe = recipe or Recipe()
    for name, size in (
        ("batch_size", batch_size),
        ("validation_batch_size", validation_batch_size),
        ("train_epoch_size", train_epoch_size),
        ("validation_epoch_size", validation_epoch_size),
    ):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ParameterError(f"{name}={size!r} is not a positive whole number")
    sample_rate = _check_pair(student, teacher)
    output_dir = Path(output_dir)
    cache_dir = output_dir / "cache" if cache_dir is None else Path(cache_dir)
    sources = [
        open_windows(side, sample_rate, cache_dir, hop_size=hop_size, quiet=quiet)
        if isinstance(side, str | os.PathLike)
        else side
        for side in (train, validation)
    ]
    for source in sources:
        if source.sample_rate != sample_rate:
            raise ParameterError(
                f"windows at {source.sample_rate} Hz given; the networks take {sample_rate} Hz"
            )
    train_source, validation_source = sources
    train_targets, validation_targets = (
        cached_targets(
            source,
            inference(teacher),
            fingerprint(teacher),
            teacher.output_shape[1],
            cache_dir,
            batch_size=validation_batch_size,
            quiet=quiet,
        )
        for source in sources
    )

    def batches(first_batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for indices in batch_indices(train_source, batch_size, recipe.seed, first_batch):
            yield train_source.read(indices), train_targets[indices]

    chosen = _evenly(len(validation_source), validation_batch_size, validation_epoch_size)

    def validation_batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for indices in chosen:
            yield validation_source.read(indices), validation_targets[indices]

    return fit(
        student,
        batches,
        validation_batches,
        train_epoch_size or -(-len(train_source) // batch_size),
        output_dir,
        recipe,
        resume=resume,
        quiet=quiet,
    )


def _check_pair(student: keras.Model, teacher: keras.Model) -> int:
    """The sample rate of two networks whose embeddings compare."""
    for role, network in (("student", student), ("teacher", teacher)):
        if len(network.input_shape) != 3:
            raise ParameterError(f"the {role} takes log-mel input; build it with input='waveform'")
    if l3.front_end(student) != l3.front_end(teacher):
        raise ParameterError(
            f"student {student.name} and teacher {teacher.name} have different front ends; "
            "distil between networks that hear the same"
        )
    if student.output_shape != teacher.output_shape:
        raise ParameterError(
            f"the student's embedding has {student.output_shape[1]} values, the teacher's "
            f"{teacher.output_shape[1]}; they must be equal"
        )
    if l3.embedding_point(student) != l3.embedding_point(teacher):
        raise ParameterError(
            "student and teacher take their embeddings before and after the activation; "
            "build both with the same embedding_point"
        )
    return l3.front_end(teacher).sample_rate


def _evenly(windows: int, batch_size: int, batches: int | None) -> list[np.ndarray]:
    """Batches of window numbers, spread over all windows when these are too many."""
    count = windows if batches is None else min(batches * batch_size, windows)
    chosen = np.linspace(0, windows, count, endpoint=False).astype(np.int64)
    return [chosen[start : start + batch_size] for start in range(0, count, batch_size)]
