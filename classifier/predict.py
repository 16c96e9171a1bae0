"""Classes of new recordings, by a classifier that was trained before."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classifier.checks import check_count
from classifier.features import embed_file, load_network
from classifier.model import Classifier, load_classifier
from classifier.train import CLASSIFIER, RESULT
from l3prune.errors import L3PruneError, ParameterError
from l3prune.files import read_json, write_json, write_table


@dataclass(frozen=True, eq=False)
class Predictor:
    """A classifier with all that is needed to use it on audio.

    Attributes
    ----------
    classifier : Classifier
    labels : tuple of str
    model : str
        Path of the embedding network when the features were extracted.
    model_sha256 : str
        Of the network, see `network_sha256`.
    hop_size : float
        Seconds between frames.

    Examples
    --------
    >>> open_result("/nowhere")
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: /nowhere does not exist; give a folder fold<k>/seed<s> of results
    """

    classifier: Classifier
    labels: tuple[str, ...]
    model: str
    model_sha256: str
    hop_size: float


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one recording.

    Attributes
    ----------
    path : pathlib.Path
    classes : tuple of (str, float)
        Label and probability, most probable first.

    Examples
    --------
    >>> print(Prediction(Path("a.wav"), (("dog", 0.75), ("rain", 0.25))))
    a.wav: dog 0.750, rain 0.250
    """

    path: Path
    classes: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return f"{self.path}: " + ", ".join(f"{label} {p:.3f}" for label, p in self.classes)


def open_result(path: str | os.PathLike[str]) -> Predictor:
    """Read a result of `train_fold`.

    Parameters
    ----------
    path : str or path-like
        Its folder `fold<k>/seed<s>`, or one of the files `classifier.npz` and `result.json` in it.

    Raises
    ------
    L3PruneError
        There is none, a file is damaged, or the features were not extracted by this project, so
        that the network is not known.

    Examples
    --------
    >>> import tempfile
    >>> open_result(tempfile.mkdtemp())
    Traceback (most recent call last):
        ...
    l3prune.errors.L3PruneError: ...result.json is missing; give a folder fold<k>/seed<s> of results
    """
    path = Path(path)
    hint = "give a folder fold<k>/seed<s> of results"
    if not path.exists():
        raise L3PruneError(f"{path} does not exist; {hint}")
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name not in (CLASSIFIER, RESULT):
        raise L3PruneError(f"{path} is neither {CLASSIFIER} nor {RESULT}; {hint}")
    if not (folder / RESULT).is_file():
        raise L3PruneError(f"{folder / RESULT} is missing; {hint}")
    record = read_json(folder / RESULT)
    classifier = load_classifier(folder / CLASSIFIER)
    try:
        labels = tuple(str(label) for label in record["result"]["labels"])
        extraction = record["extraction"]
        model, sha256 = str(extraction["model"]), str(extraction["model_sha256"])
        hop_size = float(extraction["hop_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise L3PruneError(
            f"{folder / RESULT} does not say how its features were extracted ({error!r}); extract "
            "them with `python -m classifier features` and train again"
        ) from error
    if len(labels) != classifier.model.shape[1]:
        raise L3PruneError(
            f"{folder} has {len(labels)} labels and a classifier of {classifier.model.shape[1]} "
            "classes; train it again"
        )
    return Predictor(classifier, labels, model, sha256, hop_size)


def predict_files(
    paths: Sequence[Path],
    predictor: Predictor,
    *,
    model: str | os.PathLike[str] | None = None,
    top: int = 3,
    batch_size: int = 32,
    quiet: bool = False,
    skipped: Callable[[str], None] | None = None,
) -> list[Prediction]:
    """Embed and classify audio files.

    Parameters
    ----------
    paths : sequence of pathlib.Path
    predictor : Predictor
    model : str or path-like, optional
        Where the embedding network is now; default where it was.
    top : int
        How many classes to name.
    batch_size : int
        Frames that the network sees at once.
    quiet : bool
        Show no progress bar.
    skipped : callable, optional
        Called with the reason for each file that cannot be read or embedded. Without it, the
        first such file is an error.

    Returns
    -------
    predictions : list of Prediction
        In the order of the paths, without skipped files.

    Raises
    ------
    ParameterError
        `top` or `batch_size` is not positive, or `top` is larger than the number of classes.
    L3PruneError
        The network cannot be loaded or is not the one that the classifier was trained on.

    Examples
    --------
    >>> zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    >>> from classifier.inputs import Preparation
    >>> from classifier.mlp import MLP
    >>> mlp = MLP((np.float32([[0, 1]]),), (np.zeros(2, np.float32),))
    >>> classifier = Classifier(Preparation(False, 1, zero, one, zero, one), mlp)
    >>> predict_files([], Predictor(classifier, ("dog", "rain"), "net.h5", "", 0.1), top=3)
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: top=3, but there are only 2 classes: dog, rain
    """
    from tqdm import tqdm

    check_count("top", top)
    check_count("batch_size", batch_size)
    if top > len(predictor.labels):
        raise ParameterError(
            f"top={top}, but there are only {len(predictor.labels)} classes: "
            f"{', '.join(predictor.labels)}"
        )
    network = load_network(predictor.model if model is None else model, predictor.model_sha256)
    predictions = []
    for path in tqdm(list(paths), desc="predict", unit="file", disable=quiet or None):
        try:
            frames = embed_file(path, network, predictor.hop_size, batch_size)
        except L3PruneError as error:
            if skipped is None:
                raise
            skipped(str(error))
            continue
        probabilities = predictor.classifier.predict(frames)
        # Stable: of equal probabilities the first class comes first, as in training.
        order = np.argsort(-probabilities, kind="stable")[:top]
        best = tuple((predictor.labels[i], float(probabilities[i])) for i in order)
        predictions.append(Prediction(Path(path), best))
    return predictions


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuse a file for predictions that is neither CSV nor JSON by its ending.

    Examples
    --------
    >>> check_output("classes.txt")
    Traceback (most recent call last):
        ...
    l3prune.errors.ParameterError: classes.txt ends neither in .csv nor in .json; ...
    """
    if Path(path).suffix.lower() not in (".csv", ".json"):
        raise ParameterError(f"{path} ends neither in .csv nor in .json; choose one of them")


def write_predictions(predictions: Sequence[Prediction], path: str | os.PathLike[str]) -> None:
    """Write predictions as CSV (a row per file and class) or JSON, by the ending of the path.

    Raises
    ------
    ParameterError
        Another ending.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "classes.csv"
    >>> write_predictions([Prediction(Path("a.wav"), (("dog", 0.75),))], path)
    >>> path.read_text().splitlines()
    ['file,rank,class,probability', 'a.wav,1,dog,0.75']
    """
    check_output(path)
    rows: list[dict[str, Any]] = [
        {"file": str(each.path), "rank": rank, "class": label, "probability": probability}
        for each in predictions
        for rank, (label, probability) in enumerate(each.classes, start=1)
    ]
    if Path(path).suffix.lower() == ".csv":
        write_table(path, rows)
    else:
        files = [
            {
                "file": str(each.path),
                "classes": [{"class": label, "probability": p} for label, p in each.classes],
            }
            for each in predictions
        ]
        write_json(path, files)
