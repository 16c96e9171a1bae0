"""Embeddings of a labelled corpus on disk: one npz per clip."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from classifier.checks import check_count
from classifier.inputs import Features, frames_problem
from l3prune.datasets import Dataset
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import atomic_write, make_folder, read_json, write_json

if TYPE_CHECKING:
    from types import ModuleType

#: Hops allowed, in seconds. Frames are one second long, so a longer hop would skip samples.
HOP_SIZES = (0.001, 1.0)

#: What has to agree for two runs to write into one folder.
IDENTITY = ("dataset", "labels", "model_sha256", "hop_size")


def extract_features(
    dataset: Dataset,
    model: Any,
    output_dir: str | os.PathLike[str],
    *,
    hop_size: float = 0.1,
    folds: Collection[int] | None = None,
    batch_size: int = 32,
    engine: str | None = None,
    quiet: bool = False,
) -> int:
    """Embed every clip of a corpus, one file per clip.

    Frames are one second long and not centred. A clip shorter than that is zero-padded on both
    sides, by one sample less on the left where the number is odd; the end of a longer one is
    zero-padded so that the frames cover all of it. Clips that are there already are kept, so an
    interrupted run continues, and runs over different folds can share a folder.

    Parameters
    ----------
    dataset : Dataset
        From `l3prune.datasets.load_dataset`.
    model : str, path-like, keras.Model or SparseModel
        The embedding network, as `l3prune.embedding.load_model` takes it.
    output_dir : str or path-like
        Receives `features.json` and `fold{k}/<stem>.npz` with X (frames, D) float32 and y, the
        target.
    hop_size : float
        Seconds between frames, 0.001 … 1.
    folds : collection of int, optional
        Only these folds; default all.
    batch_size : int
        Frames that the network sees at once.
    engine : str or None
        As `l3prune.get_embedding` takes it. None is "dense" but for a packed file, so that the
        last digits of features do not depend on a network's sparsity.
    quiet : bool
        Show no progress bar.

    Returns
    -------
    written : int
        Clips embedded by this run, without those that were there.

    Raises
    ------
    ParameterError
        A hop size, fold or batch size that is not allowed; nothing is written.
    L3PruneError
        The folder has features of another model, hop size or corpus (nothing is written); the
        model cannot be loaded; or some clips cannot be read or embedded: they are skipped, and
        named when all others have been written.

    Examples
    --------
    >>> from l3prune.datasets import Clip
    >>> clips = (Clip(Path("a.wav"), fold=1, target=0),)
    >>> extract_features(Dataset("toy", clips, ("dog",)), "net.h5", "features", hop_size=2)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: hop_size=2 is not in [0.001, 1.0] seconds; ...
    """
    if not HOP_SIZES[0] <= hop_size <= HOP_SIZES[1]:
        raise ParameterError(
            f"hop_size={hop_size} is not in [{HOP_SIZES[0]}, {HOP_SIZES[1]}] seconds; "
            "frames are 1 s long and must cover the clip"
        )
    check_count("batch_size", batch_size)
    unknown = sorted(set(folds or ()) - set(dataset.folds))
    if unknown:
        raise ParameterError(
            f"fold {unknown[0]} does not exist in {dataset.name}; "
            f"folds: {', '.join(map(str, dataset.folds))}"
        )
    paths = [Path(f"fold{clip.fold}", f"{clip.path.stem}.npz") for clip in dataset.clips]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise L3PruneError(
            f"two clips of {dataset.name} would both be {twice}; rename one of them or its fold"
        )
    output_dir = Path(output_dir)
    network = _embedding().load_model(model)
    _describe(output_dir, dataset, model, network, float(hop_size))

    from tqdm import tqdm

    failed: list[str] = []
    written = 0
    chosen = [
        (clip, output_dir / path)
        for clip, path in zip(dataset.clips, paths, strict=True)
        if folds is None or clip.fold in folds
    ]
    # None: no bar where standard error is a file, as in a batch job.
    for clip, path in tqdm(chosen, desc="features", unit="clip", disable=quiet or None):
        if _is_done(path, clip.target):
            continue
        try:
            frames = embed_file(clip.path, network, hop_size, batch_size, engine)
        except L3PruneError as error:
            failed.append(str(error))
            continue
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, X=frames, y=np.int64(clip.target))
        written += 1
    if failed:
        raise L3PruneError(
            f"{len(failed)} of {len(chosen)} clips have no features, the others are written: "
            f"{'; '.join(failed)}. Repair them, or remove them from the corpus's list, and run "
            "this again"
        )
    return written


def read_features(features_dir: str | os.PathLike[str]) -> Features:
    """Read what `extract_features` wrote. Every fold that was begun must be complete.

    Parameters
    ----------
    features_dir : str or path-like
        Its `output_dir`. All of it has to fit into memory.

    Returns
    -------
    features : Features
        Clips in the corpus's order.

    Raises
    ------
    L3PruneError
        The folder is no features folder or is empty, clips are missing, or a file is damaged.

    Examples
    --------
    >>> read_features("/nowhere")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: /nowhere/features.json is missing; make it with ...
    """
    features_dir = Path(features_dir)
    record = features_dir / "features.json"
    if not record.is_file():
        raise L3PruneError(f"{record} is missing; make it with `python -m classifier features`")
    description = read_json(record)
    try:
        labels = tuple(str(label) for label in description["labels"])
        listed = {int(fold): list(names) for fold, names in description["clips"].items()}
        dataset = str(description["dataset"])
        # Features written before there were copies have no such list.
        originals = {str(a): str(b) for a, b in description.get("originals", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise L3PruneError(
            f"{record} is not a features description ({error!r}); extract the features again"
        ) from error
    names: list[str] = []
    folds: list[int] = []
    targets: list[int] = []
    embeddings: list[np.ndarray] = []
    for fold, stems in sorted(listed.items()):
        folder = features_dir / f"fold{fold}"
        if not folder.is_dir():
            continue
        missing = [stem for stem in stems if not (folder / f"{stem}.npz").is_file()]
        if missing:
            raise L3PruneError(
                f"{folder} lacks {len(missing)} of {len(stems)} clips, the first is {missing[0]}; "
                "run `python -m classifier features` again, it continues"
            )
        for stem in stems:
            path = folder / f"{stem}.npz"
            frames, target = _read_clip(path)
            problem = frames_problem(frames, embeddings[0].shape[1] if embeddings else None)
            if not 0 <= target < len(labels):
                problem = f"has y={target}, but {record} has {len(labels)} labels"
            if problem:
                raise L3PruneError(f"{path} {problem}; delete it and extract the features again")
            names.append(stem)
            folds.append(fold)
            targets.append(target)
            embeddings.append(frames)
    if not names:
        raise L3PruneError(f"{features_dir} has no clips; run `python -m classifier features`")
    extraction = {
        key: value for key, value in description.items() if key not in ("clips", "originals")
    }
    return Features(
        dataset,
        labels,
        tuple(names),
        np.array(folds),
        np.array(targets),
        tuple(embeddings),
        extraction,
        originals,
    )


def embed_file(
    path: str | os.PathLike[str],
    network: Any,
    hop_size: float,
    batch_size: int = 32,
    engine: str | None = None,
) -> np.ndarray:
    """Frames of one audio file, cut and padded as `extract_features` does.

    Parameters
    ----------
    path : str or path-like
    network : keras.Model
    hop_size : float
        Seconds between frames.
    batch_size : int
        Frames that the network sees at once.
    engine : str or None
        As `extract_features` takes it.

    Returns
    -------
    frames : np.ndarray, (frames, D) float32

    Raises
    ------
    L3PruneError
        The file cannot be read or embedded; the message names it.

    Examples
    --------
    >>> embed_file("/nowhere/a.wav", None, 0.1)
    Traceback (most recent call last):
        ...
    l3prune.errors...Error: no such audio file: /nowhere/a.wav
    """
    from l3prune.audio import load_audio

    audio, sample_rate = load_audio(path)
    short = sample_rate - len(audio)
    if short > 0:
        audio = np.pad(audio, ((short // 2, short - short // 2), (0, 0)))
    try:
        frames, _ = _embedding().get_embedding(
            audio,
            sample_rate,
            model=network,
            hop_size=hop_size,
            center=False,
            batch_size=batch_size,
            engine=engine or ("sparse" if hasattr(network, "program") else "dense"),
        )
    except L3PruneError as error:
        raise L3PruneError(f"{path}: {error}") from error
    problem = frames_problem(frames, None)
    if problem:
        raise L3PruneError(f"{path} {problem}")
    return frames


def load_network(model: Any, sha256: str | None = None) -> Any:
    """The embedding network that a `model` argument names; with a checksum, only that one.

    Raises
    ------
    L3PruneError
        It cannot be loaded, or it is another network than the checksum's.

    Examples
    --------
    >>> load_network("/nowhere/net.h5")
    Traceback (most recent call last):
        ...
    l3prune.errors...Error: no such weight file: /nowhere/net.h5...
    """
    network = _embedding().load_model(model)
    if sha256 is not None and network_sha256(network) != sha256:
        raise L3PruneError(
            f"{model} is not the network that the classifier was trained on (its layers or "
            "weights differ); give that one with --model"
        )
    return network


def network_sha256(network: Any) -> str:
    """Of its layers' kinds, output shape and weights; not of names, which Keras numbers.

    Examples
    --------
    >>> from l3prune.networks import create_network
    >>> len(network_sha256(create_network("sea64")))
    64
    """
    if hasattr(network, "program"):  # a packed file's
        return network.program.sha256
    kinds = [type(layer).__name__ for layer in network.layers]
    digest = hashlib.sha256(repr((kinds, network.output_shape)).encode())
    for weights in network.get_weights():
        weights = np.ascontiguousarray(weights)
        digest.update(repr((weights.shape, str(weights.dtype))).encode())
        digest.update(weights.tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on, for the record.

    Examples
    --------
    >>> sorted(versions())
    ['l3prune', 'numpy', 'scikit-learn', 'tensorflow', 'tf_keras']
    """
    import l3prune

    found = {"l3prune": l3prune.__version__}
    for package in ("numpy", "scikit-learn", "tensorflow", "tf_keras"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def _embedding() -> ModuleType:
    # Here, because it imports TensorFlow, which takes seconds.
    import l3prune.embedding

    return l3prune.embedding


def _describe(
    output_dir: Path, dataset: Dataset, model: Any, network: Any, hop_size: float
) -> None:
    """Write features.json, unless the folder has features made in another way."""
    description = {
        "dataset": dataset.name,
        "labels": list(dataset.labels),
        "model": str(model) if isinstance(model, (str, os.PathLike)) else network.name,
        "model_sha256": network_sha256(network),
        "hop_size": hop_size,
        "versions": versions(),
        "clips": {
            str(fold): [clip.path.stem for clip in dataset.clips if clip.fold == fold]
            for fold in dataset.folds
        },
        "originals": {
            clip.path.stem: clip.original for clip in dataset.clips if clip.original is not None
        },
    }
    record = output_dir / "features.json"
    if record.exists():
        found = read_json(record)
        if not isinstance(found, dict):
            raise L3PruneError(f"{record} is not a features description; choose another folder")
        changed = [key for key in IDENTITY if found.get(key) != description[key]]
        if changed:
            was, now = (
                {key: source.get(key) for key in changed} for source in (found, description)
            )
            raise L3PruneError(
                f"{output_dir} has features made with {was}, this run has {now}; "
                "choose another output folder"
            )
    make_folder(output_dir)
    write_json(record, description)


def _is_done(path: Path, target: int) -> bool:
    """Whether the file holds valid features with this target; a damaged one is made again."""
    if not path.is_file():
        return False
    try:
        frames, found = _read_clip(path)
    except L3PruneError:
        return False
    return found == target and frames_problem(frames, None) is None


def _read_clip(path: Path) -> tuple[np.ndarray, int]:
    """X and y of one file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            frames, target = arrays["X"], arrays["y"]
            if target.shape != () or target.dtype.kind not in "iu":
                raise ValueError(f"y is {target.dtype} of shape {target.shape}, not one integer")
            return frames, int(target)
    except (OSError, ValueError, TypeError, LookupError, EOFError, AttributeError) as error:
        problem: Exception = error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        problem = error
    raise L3PruneError(
        f"{path} is damaged ({problem}); delete it and extract the features again"
    ) from problem
