"""The examples, run as a user runs them, against l3prune's own embedding."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import l3prune
from l3prune import litert
from l3prune.graph import conv_weights
from l3prune.onnx_file import write_onnx
from l3prune.plan import plan_layerwise
from l3prune.sparse import program_of
from l3prune.sparse.packed import save_program
from l3prune.surgery import apply_masks
from tests.conftest import chirp, make_tiny

EXAMPLES = Path(l3prune.__file__).parent.parent / "examples"

#: What an example may import besides the standard library.
ALLOWED = {
    "embed_litert.py": {"numpy", "soundfile", "ai_edge_litert"},
    "embed_onnx.py": {"numpy", "soundfile", "onnxruntime"},
    "embed_sparse.py": {"numpy", "soundfile", "l3prune"},
    "stream.py": {"numpy", "soundfile", "ai_edge_litert"},
}


@pytest.fixture(scope="module")
def pruned():
    network = make_tiny()
    return apply_masks(network, plan_layerwise(conv_weights(network), 0.5))


@pytest.fixture(scope="module")
def files(tmp_path_factory, pruned):
    """The network in the examples' formats, and a recording."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "net.tflite").write_bytes(litert.convert(pruned, waveform=True))
    (folder / "spectrograms.tflite").write_bytes(litert.convert(pruned))
    write_onnx(program_of(pruned), folder / "net.onnx")
    save_program(program_of(pruned), folder / "net.l3p")
    # Neither whole seconds nor whole hops.
    audio = np.stack([chirp(2.345, 8000), 0.3 * chirp(2.345, 8000, 50, 200)], axis=1)
    soundfile.write(folder / "clip.wav", audio, 8000, subtype="FLOAT")
    soundfile.write(folder / "fast.wav", audio, 16000)
    return folder


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
    )


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_examples_need_little(name):
    tree = ast.parse((EXAMPLES / name).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    assert found - set(sys.stdlib_module_names) == ALLOWED[name]


@pytest.mark.parametrize("hop", [0.1, 0.33])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("embed_litert.py", "net.tflite"),
        ("embed_onnx.py", "net.onnx"),
        ("embed_sparse.py", "net.l3p"),
    ],
)
def test_embeddings_are_l3prune_s(files, pruned, tmp_path, name, file, hop):
    output = tmp_path / "clip.npz"
    ended = run(name, files / file, files / "clip.wav", output, "--hop-size", hop)
    assert ended.returncode == 0, ended.stderr
    audio, rate = soundfile.read(files / "clip.wav", dtype="float32")
    wanted, times = l3prune.get_embedding(audio, rate, pruned, hop_size=hop)
    with np.load(output, allow_pickle=False) as made:
        np.testing.assert_allclose(made["embedding"], wanted, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(made["timestamps"], times)
    assert ended.stdout == f"{len(wanted)} windows of 4 values\n"


@pytest.mark.parametrize("hop", [0.1, 0.33])
def test_the_stream_s_embeddings_are_l3prune_s(files, pruned, tmp_path, hop):
    output = tmp_path / "clip.npz"
    ended = run("stream.py", files / "net.tflite", files / "clip.wav", output, "--hop-size", hop)
    assert ended.returncode == 0, ended.stderr
    audio, rate = soundfile.read(files / "clip.wav", dtype="float32")
    wanted, times = l3prune.get_embedding(audio, rate, pruned, hop_size=hop, center=False)
    # Windows that end within the recording.
    count = 1 + (len(audio) - rate) // int(hop * rate)
    with np.load(output, allow_pickle=False) as made:
        np.testing.assert_allclose(made["embedding"], wanted[:count], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(made["timestamps"], times[:count])
    first, second = ended.stdout.splitlines()
    assert first == f"{count} embeddings of 2.3 s"
    assert float(re.fullmatch(r"real-time factor (\d+\.\d+)", second)[1]) > 0


@pytest.mark.parametrize("name", ["embed_litert.py", "stream.py"])
def test_wrong_files_are_told_in_one_line(files, tmp_path, name):
    for model, audio, message in (
        ("net.tflite", "fast.wav", "has 16000 Hz; resample it to 8000 Hz"),
        ("spectrograms.tflite", "clip.wav", "takes spectrograms; export it with --input waveform"),
    ):
        ended = run(name, files / model, files / audio, tmp_path / "out.npz")
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1].endswith(message)
        assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("embed_litert.py", "net.tflite"),
        ("embed_onnx.py", "net.onnx"),
        ("embed_sparse.py", "net.l3p"),
        ("stream.py", "net.tflite"),
    ],
)
def test_wrong_hops_and_recordings_are_told_in_one_line(files, tmp_path, name, file):
    hops = ["0", "nan", "0.00001"] if name == "embed_sparse.py" else ["0", "-1", "nan", "5"]
    lines = [["clip.wav", "--hop-size", hop] for hop in hops]
    for audio, *more in [*lines, ["nowhere.wav"]]:
        ended = run(name, files / file, files / audio, tmp_path / "out.npz", *more)
        assert ended.returncode == 1, (audio, more)
        assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out.npz").exists()
