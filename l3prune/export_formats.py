"""What networks are exported to: a table, without TensorFlow."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from l3prune.errors import L3PruneError, ParameterError

#: What an export takes.
WAVEFORM, LOG_MEL = INPUTS = ("waveform", "log_mel")


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes
    ----------
    name : str
        What people type.
    kind : str
        Names of one kind are written and run alike.
    values : str
        Of the weights.
    ending : str
        Of the file's name.
    tolerance : float
        Largest error of an export, see `exports.ERROR`.
    engine : str
        What runs it before it is published, for people.
    packages : tuple of str
        That it needs beside those of the extra "full".
    inputs : tuple of str
        What it can take, of `INPUTS`.

    Examples
    --------
    >>> FORMATS["litert-int8"].file("net", "log_mel")
    'net-log_mel.int8.tflite'
    """

    name: str
    kind: str
    values: str
    ending: str
    tolerance: float
    engine: str
    packages: tuple[str, ...] = ()
    inputs: tuple[str, ...] = INPUTS

    @property
    def calibrated(self) -> bool:
        """Whether it needs ranges of activations from recordings."""
        return self.values == "int8" and self.kind in ("litert", "c-header")

    def file(self, name: str, given: str) -> str:
        """The file's name for a network's name and an input."""
        return f"{name}-{given}{self.ending}"

    def check_place(self, path: Path, *, overwrite: bool) -> None:
        """Refuse a path that holds what an export of this format may not replace."""
        if not path.exists():
            return
        if not overwrite:
            raise ParameterError(f"{path} exists; overwrite it, or give another name or folder")
        # What is replaced is deleted, with all that is in it.
        ours = (path / "saved_model.pb").is_file() if self.kind == "saved-model" else path.is_file()
        if not ours:
            raise ParameterError(
                f"{path} exists and is no {self.name} file; move it away, or give another name"
            )

    def check_input(self, given: str) -> None:
        """Refuse an input that the format cannot take."""
        if given not in INPUTS:
            raise ParameterError(f"input {given!r} is unknown; allowed: {', '.join(INPUTS)}")
        if given not in self.inputs:
            others = [each.name for each in FORMATS.values() if given in each.inputs]
            raise ParameterError(
                f"{self.name} cannot take input {given}: its engine has no operator for the front "
                f"end's Fourier transform; it takes {', '.join(self.inputs)}; formats with "
                f"{given}: {', '.join(others)}"
            )

    def check_packages(self) -> None:
        """Refuse a format whose engine is not installed."""
        for package in self.packages:
            if importlib.util.find_spec(package.replace("-", "_")) is None:
                raise L3PruneError(
                    f"{self.name} needs {package}, which is not installed: "
                    "pip install 'l3prune[export]'"
                )


_LITERT = ("LiteRT", ("ai-edge-litert",))

FORMATS = {
    each.name: each
    for each in (
        Format("saved-model", "saved-model", "float32", ".saved_model", 1e-4, "TensorFlow"),
        Format("litert-float32", "litert", "float32", ".float32.tflite", 1e-4, *_LITERT),
        Format("litert-float16", "litert", "float16", ".float16.tflite", 0.01, *_LITERT),
        Format("litert-dynamic", "litert", "dynamic", ".dynamic.tflite", 0.1, *_LITERT),
        Format("litert-int8", "litert", "int8", ".int8.tflite", 0.3, *_LITERT),
        Format("onnx", "onnx", "float32", ".onnx", 1e-4, "ONNX Runtime", ("onnx", "onnxruntime")),
        Format("sparse-float32", "sparse", "float32", ".float32.l3p", 1e-4, "l3prune.sparse"),
        Format("sparse-float16", "sparse", "float16", ".float16.l3p", 0.01, "l3prune.sparse"),
        Format("sparse-int8", "sparse", "int8", ".int8.l3p", 0.15, "l3prune.sparse"),
        Format("c-header", "c-header", "int8", ".int8.h", 0.3, *_LITERT, inputs=(LOG_MEL,)),
    )
}
