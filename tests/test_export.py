"""python -m l3prune.export: what is published, how it is checked, what is refused."""

import dataclasses
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow as tf
import tf_keras as keras

from l3prune import c_header, exports, litert, onnx_file, surgery
from l3prune.audio import log_spectrogram
from l3prune.download import git_blob_sha1
from l3prune.errors import L3PruneError, ParameterError
from l3prune.export import main
from l3prune.export_formats import FORMATS, INPUTS
from l3prune.exports import Source, embedding_error, export
from l3prune.graph import conv_weights
from l3prune.networks import attach_config, create_network, inference
from l3prune.plan import plan_layerwise
from l3prune.published import list_weights
from l3prune.quantization import measure_ranges, on_grid, to_litert
from l3prune.sparse import SparseModel
from l3prune.weights import load_network, save_network
from tests.commands import tree, words
from tests.conftest import make_pruned, make_sounds, make_tiny

#: Every format with every input that it takes.
PAIRS = [(name, given) for name in sorted(FORMATS) for given in FORMATS[name].inputs]

#: An export that needs a package.
VERSIONED = {
    package: (name, form.inputs[0]) for name, form in FORMATS.items() for package in form.packages
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A pruned network's checkpoint, with a licence."""
    path = tmp_path_factory.mktemp("weights") / "tiny.h5"
    save_network(make_pruned(), path, origin={"licence": "MIT", "origin": "a test"})
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return make_sounds(tmp_path_factory.mktemp("recordings") / "sounds")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, weights, recordings):
    """A folder with all formats, of both inputs."""
    folder = tmp_path_factory.mktemp("exported") / "deep" / "er"
    line = [weights, folder, "--calibration", recordings, "--quiet", "--format"]
    for given in INPUTS:
        names = [name for name in FORMATS if given in FORMATS[name].inputs]
        assert main(words(*line, *names, "--input", given)) == 0
    return folder


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    """A C header."""
    folder = tmp_path_factory.mktemp("header")
    source = dataclasses.replace(source_of(make_pruned()), name="tiny")
    return folder / export(source, FORMATS["c-header"], "log_mel", folder)["file"]


def record_of(folder, name, given):
    file = FORMATS[name].file("tiny", given)
    return json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))


def run(path, inputs):
    """The outputs of a file, by its engine's own interface and nothing of `exports`."""
    if path.suffix == ".tflite":
        return litert.run(path.read_bytes(), inputs)
    if path.suffix == ".h":
        return litert.run(c_header.read_header(path), inputs)
    if path.suffix == ".onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(path).run(None, {"input": inputs})[0]
    if path.suffix == ".l3p":
        return SparseModel.load(path)(inputs)
    (made,) = (
        tf.saved_model.load(str(path))
        .signatures["serving_default"](input=tf.constant(inputs))
        .values()
    )
    return made.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "given"), PAIRS)
def test_an_export_computes_what_the_network_does(exported, weights, name, given):
    network = load_network(weights)
    rng = np.random.default_rng(4)
    windows = rng.uniform(-0.5, 0.5, (3, 1, 8000)).astype(np.float32)
    inputs = windows
    if given == "log_mel":
        inputs = log_spectrogram(windows[:, 0], litert.front_end_of(network))
    made = run(exported / FORMATS[name].file("tiny", given), inputs)
    wanted = inference(network)(windows)
    assert made.shape == (3, 16)
    assert made.dtype == np.float32
    allowed = {"float32": 1e-4, "float16": 0.01, "dynamic": 0.1, "int8": 0.3}
    assert embedding_error(made, wanted) <= allowed[FORMATS[name].values]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "given"), PAIRS)
def test_a_record_says_what_the_file_is(exported, weights, name, given):
    record = record_of(exported, name, given)
    path = exported / record["file"]
    assert record["format"] == name
    assert record["input"]["kind"] == given
    assert record["input"]["shape"] == ([1, 8000] if given == "waveform" else [64, 50, 1])
    assert record["input"]["range"] == ([-1, 1] if given == "waveform" else [-80, 0])
    assert record["output"] == {"shape": [16], "dtype": "float32"}
    assert record["sample_rate"] == 8000
    assert record["embedding_point"] == "activated"
    assert 0 <= record["error"] <= record["tolerance"] == FORMATS[name].tolerance
    assert record["windows_from"] == "recordings"
    # Four recordings of two seconds: a window a second, every other one for ranges.
    assert record["windows"] == 4
    assert record.get("calibration_windows") == (4 if FORMATS[name].calibrated else None)
    assert record["source"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["source"]["licence"] == "MIT"
    assert {"l3prune", "tensorflow", *FORMATS[name].packages} <= set(record["versions"])
    if path.is_file():
        content = path.read_bytes()
        assert record["sha256"] == hashlib.sha256(content).hexdigest()
        assert record["bytes"] == len(content)
        assert record["gzip_bytes"] == len(gzip.compress(content, mtime=0))
    else:
        files = [each for each in path.rglob("*") if each.is_file()]
        assert record["bytes"] == sum(each.stat().st_size for each in files)
        assert len(record["sha256"]) == len(files)
    zeros = record.get("zeros")
    assert (zeros is not None) == name.startswith(("litert", "c-"))
    if zeros:
        kernels = [each.kernel for each in conv_weights(load_network(weights)).values()]
        assert zeros["weights"] == sum(kernel.size for kernel in kernels)
        assert zeros["zero_in_network"] == sum((kernel == 0).sum() for kernel in kernels)
        assert zeros["rounded_to_zero"] == 0 or FORMATS[name].values != "float32"


@pytest.mark.slow
def test_the_folder_has_a_card_and_nothing_else(exported):
    names = {FORMATS[name].file("tiny", given) for name, given in PAIRS}
    assert {path.name for path in exported.iterdir()} == {
        *names,
        *(f"{name}.json" for name in names),
        "README.md",
    }
    card = (exported / "README.md").read_text(encoding="utf-8")
    for name, given in PAIRS:
        record = record_of(exported, name, given)
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {record['file']} |")]
        assert f"| {record['bytes']:,} | {record['gzip_bytes']:,} | {record['error']:.2g} |" in row
    assert "| licence | MIT |" in card
    assert "| origin | a test |" in card
    total = record["source"]["kernel_weights"]
    zero = total - record["source"]["nonzero_kernel_weights"]
    assert f"| kernel weights | {total:,}, of these {zero:,} zero (" in card
    assert "on 4 windows of recordings" in card
    for package in ("ai-edge-litert", "onnx", "onnxruntime"):
        assert f"{package} {record_of(exported, *VERSIONED[package])['versions'][package]}" in card


def test_a_header_has_the_bytes_of_a_litert_file(header):
    text = header.read_text(encoding="ascii")
    content = c_header.read_header(header)
    assert content[4:8] == b"TFL3"
    for line in (
        f"#define L3PRUNE_TINY_LOG_MEL_BYTES {len(content)}",
        "#define L3PRUNE_TINY_LOG_MEL_INPUT_BANDS 64",
        "#define L3PRUNE_TINY_LOG_MEL_INPUT_FRAMES 50",
        "#define L3PRUNE_TINY_LOG_MEL_OUTPUT_VALUES 16",
        "#define L3PRUNE_TINY_LOG_MEL_SAMPLE_RATE 8000",
        " *   CONV_2D",
        "_Alignas(16)",
        "alignas(16)",
    ):
        assert line in text.splitlines()
    kinds = {kind for kind, _ in litert.operators(content)}
    assert f"#define L3PRUNE_TINY_LOG_MEL_OPERATORS {len(kinds)}" in text
    assert kinds <= c_header.MICRO_OPERATORS


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_a_header_compiles_to_the_same_bytes_in_c_and_cpp(header, tmp_path):
    content = c_header.read_header(header)
    assert c_header.compiled_bytes(header, "l3prune_tiny_log_mel") == content
    if shutil.which("g++"):
        (tmp_path / "main.cpp").write_text(f'#include "{header}"\n', encoding="utf-8")
        line = ["g++", "-std=c++11", "-Wall", "-fsyntax-only", tmp_path / "main.cpp"]
        assert subprocess.run(line, check=False).returncode == 0


@pytest.mark.parametrize("folder", ['in "quotes"', "back\\slash", "ü|ber"])
def test_a_header_compiles_whatever_its_folder_is_called(tmp_path, folder):
    path = tmp_path / folder / "net.h"
    path.parent.mkdir()
    c_header.write_header(b"TFL3", path, "net", {}, [])
    assert c_header.compiled_bytes(path, "net") in (b"TFL3", None)


def test_headers_of_two_versions_have_names_of_their_own():
    names = [exports._array_name(f"net.{version}-log_mel") for version in ("v1", "v2")]
    assert names == ["l3prune_net_v1_log_mel", "l3prune_net_v2_log_mel"]


def test_a_header_that_lost_a_byte_is_refused(tmp_path):
    path = tmp_path / "net.h"
    c_header.write_header(bytes(range(40)), path, "net", {}, [])
    assert c_header.read_header(path) == bytes(range(40))
    path.write_text(path.read_text().replace("0x07,", ""))
    with pytest.raises(L3PruneError, match="has no array of bytes"):
        c_header.read_header(path)
    if shutil.which("gcc"):
        path.write_text(path.read_text().replace("0x08,", "nonsense,"))
        with pytest.raises(L3PruneError, match="does not compile"):
            c_header.compiled_bytes(path, "net")


@pytest.mark.parametrize("beside", [None, "{}"])
def test_published_weights_have_their_licence_whatever_lies_beside_them(
    weights, tmp_path, monkeypatch, beside
):
    path = tmp_path / "net.h5"
    path.write_bytes(weights.read_bytes())
    if beside is not None:
        path.with_suffix(".json").write_text(beside)
    known = list_weights()[0]
    listed = [dataclasses.replace(known, git_blob_sha1=git_blob_sha1(path))]
    monkeypatch.setattr(exports, "list_weights", lambda: listed)
    facts = exports.describe_source(load_network(path), path)
    assert facts["licence"] == known.licence
    assert facts["origin"] == f"{known.name}, {known.url}"


# -- What is not published ------------------------------------------------------------------------


def source_of(network=None):
    rng = np.random.default_rng(0)
    windows = rng.uniform(-0.5, 0.5, (4, 1, 8000)).astype(np.float32)
    network = network or make_tiny()
    facts = {"fingerprint": "0"}
    return Source(network, "net", windows[:2], "noise", windows[2:], facts=facts)


def test_the_error_is_a_distance_over_a_mean_length():
    wanted = np.array([[3.0, 4.0], [0.0, 15.0]])
    assert embedding_error(wanted + np.array([[0, 2], [1, 0]]), wanted) == 2 / 10
    assert embedding_error(wanted[:1], wanted) == np.inf
    assert embedding_error(wanted * np.nan, wanted) == np.inf
    assert embedding_error(np.zeros((1, 2)), np.zeros((1, 2))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["litert-float32", "onnx", "saved-model", "sparse-int8"])
def test_a_wrong_export_is_not_published(tmp_path, monkeypatch, name):
    kind = FORMATS[name].kind
    right = exports._RUNNERS[kind]
    monkeypatch.setitem(exports._RUNNERS, kind, lambda path, inputs: 2 * right(path, inputs))
    given = FORMATS[name].inputs[0]
    with pytest.raises(L3PruneError, match=r"is not published: its error is \S+, \S+ times the"):
        export(source_of(), FORMATS[name], given, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    source, form = source_of(), FORMATS["sparse-float32"]
    export(source, form, "waveform", tmp_path)
    before = tree(tmp_path)
    with pytest.raises(ParameterError, match=r"net-waveform\.float32\.l3p exists"):
        export(source, form, "waveform", tmp_path)

    def broken(path, inputs):
        raise L3PruneError("it does not run")

    monkeypatch.setitem(exports._RUNNERS, "sparse", broken)
    with pytest.raises(L3PruneError, match="it does not run"):
        export(source, form, "waveform", tmp_path, overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["saved-model", "sparse-float32"])
def test_an_export_replaces_an_old_one(tmp_path, name):
    form = FORMATS[name]
    first = export(source_of(), form, "waveform", tmp_path)
    other = make_tiny()
    other.get_layer("conv_3").kernel.assign(-other.get_layer("conv_3").kernel)
    second = export(source_of(other), form, "waveform", tmp_path, overwrite=True)
    assert first["sha256"] != second["sha256"]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_export_is_not_replaced(tmp_path):
    """A folder at a file's name, or one that is no SavedModel, is somebody's, with all in it."""
    for name in ("sparse-float32", "saved-model"):
        form = FORMATS[name]
        path = tmp_path / form.file("net", "waveform")
        path.mkdir()
        (path / "notes.txt").write_text("mine")
        with pytest.raises(ParameterError, match=f"exists and is no {name} file; move it away"):
            export(source_of(), form, "waveform", tmp_path, overwrite=True)
        assert (path / "notes.txt").read_text() == "mine"
    path = tmp_path / FORMATS["saved-model"].file("other", "waveform")
    path.write_text("mine")
    source = dataclasses.replace(source_of(), name="other")
    with pytest.raises(ParameterError, match="exists and is no saved-model file"):
        export(source, FORMATS["saved-model"], "waveform", tmp_path, overwrite=True)


def test_a_new_file_never_has_the_old_one_s_record(tmp_path, monkeypatch):
    form = FORMATS["sparse-float32"]
    record = tmp_path / (form.file("net", "waveform") + ".json")
    export(source_of(), form, "waveform", tmp_path)
    replace = os.replace

    def killed(source, target):
        replace(source, target)
        if Path(target).suffix == ".l3p" and Path(target).parent == tmp_path:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export(source_of(), form, "waveform", tmp_path, overwrite=True)
    assert not record.exists()


@pytest.mark.slow
def test_a_pruned_weight_that_is_not_zero_is_found(tiny):
    content = litert.convert(tiny)
    plan = plan_layerwise(conv_weights(tiny), 0.5)
    pruned = surgery.apply_masks(tiny, plan)
    with pytest.raises(L3PruneError, match="layer conv_1: 19 pruned weights are not zero"):
        exports.check_zeros(pruned, content)
    counts = exports.check_zeros(tiny, litert.convert(pruned))
    assert counts["zero_in_network"] == 0
    assert counts["rounded_to_zero"] == sum((~mask).sum() for mask in plan.values())


@pytest.mark.slow
def test_operators_that_a_microcontroller_has_not_are_named(tiny):
    operators = litert.operators(litert.convert(tiny, waveform=True))
    with pytest.raises(ParameterError, match=r"no operator RFFT2D \(.*\); formats that support"):
        c_header.check_operators(operators)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "onnx",
            "waveform",
            "onnx is made .*layer last: activation 'gelu'.* saved-model",
        ),
        ("sparse-int8", "log_mel", "sparse-int8 is .*layer last: activation 'gelu'.* saved-model"),
        (
            "c-header",
            "log_mel",
            r"no operator GELU \(.*\); formats that support it: lit",
        ),
    ],
)
def test_a_layer_that_a_format_has_not_is_named(tmp_path, tiny, name, given, message):
    outputs = keras.layers.Activation("gelu", name="last")(tiny.output)
    network = attach_config(keras.Model(tiny.input, outputs), tiny.l3prune_config)
    with pytest.raises(ParameterError, match=message):
        export(source_of(network), FORMATS[name], given, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["kapre-0.1", "kapre-0.3", "librosa"])
def test_onnx_has_the_front_end_in_float64(tmp_path, form):
    """Also for what float32 gets wrong: a tone, whose quiet bins are 100 dB and more below it."""
    network = create_network("sea64", filters=[1] * 8, front_end=form)
    layer = network.get_layer("log_mel")
    alone = keras.Model(network.input, keras.layers.Activation("linear")(layer.output))
    from l3prune.sparse import program_of

    path = tmp_path / "front_end.onnx"
    onnx_file.write_onnx(program_of(alone), path)
    waves = np.stack(
        [np.sin(2 * np.pi * 440 * np.arange(8000) / 8000), np.eye(1, 8000, 30)[0], np.zeros(8000)]
    ).astype(np.float32)
    made = onnx_file.run_onnx(path, waves[:, np.newaxis])
    np.testing.assert_allclose(made, log_spectrogram(waves, layer.front_end), atol=1e-3)


# -- The command ----------------------------------------------------------------------------------


def error_of(capsys, line):
    assert main(words(*line)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_made_up_sounds_without_recordings(weights, tmp_path, capsys):
    line = [weights, tmp_path / "out", "--format", "sparse-float32", "--name", "small"]
    assert main(words(*line)) == 0
    record = json.loads((tmp_path / "out/small-waveform.float32.l3p.json").read_text())
    assert (record["windows"], record["windows_from"]) == (20, "made-up sounds")
    assert "error" in capsys.readouterr().out


@pytest.mark.parametrize("given", INPUTS)
def test_a_quantised_network_keeps_its_own_ranges(tmp_path, given):
    network = make_pruned()
    wide = measure_ranges(network, [np.zeros((1, *network.input_shape[1:]))]) + np.array([-9, 9])
    quantized = on_grid(network, wide)
    quantized.save(tmp_path / "net.h5")
    line = [tmp_path / "net.h5", tmp_path / "out", "--format", "litert-int8", "--input", given]
    assert main(words(*line, "--tolerance", "9")) == 0
    file = FORMATS["litert-int8"].file("net", given)
    assert (tmp_path / "out" / file).read_bytes() == to_litert(
        quantized, waveform=given == "waveform"
    )
    record = json.loads((tmp_path / "out" / f"{file}.json").read_text())
    assert (record["ranges"], record["windows_from"]) == (
        "of the quantised network",
        "made-up sounds",
    )


def test_what_misses_its_tolerance_is_told_and_the_rest_is_published(weights, tmp_path, capsys):
    out = tmp_path / "out"
    line = [weights, out, "--format", "sparse-int8", "sparse-float32", "--tolerance", "1e-4"]
    assert main(words(*line)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("not exported: sparse-int8: tiny-waveform.int8.l3p is not published")
    assert "times the tolerance of 0.0001" in line
    assert {path.name for path in out.iterdir()} == {
        "tiny-waveform.float32.l3p",
        "tiny-waveform.float32.l3p.json",
        "README.md",
    }


def test_nothing_published_leaves_no_folder(weights, tmp_path, capsys):
    line = [weights, tmp_path / "out", "--format", "sparse-int8", "--tolerance", "1e-9"]
    assert "is not published" in error_of(capsys, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format", "tflite"], "--format tflite is unknown; known: saved-model, litert-float32"),
        (
            ["--format", "c-header", "--input", "waveform"],
            "c-header cannot take input waveform.* formats with waveform: saved-model, litert",
        ),
        (["--format", "litert-int8"], "litert-int8 needs ranges.*--calibration"),
        (["--format", "onnx", "--tolerance", "0"], "--tolerance 0.0 is not a positive number"),
        (["--format", "onnx", "--tolerance", "nan"], "--tolerance nan is not a positive number"),
        (["--format", "onnx", "--name", "a/b"], "--name 'a/b' is not a name for files"),
        (["--format", "onnx", "--name", "\udcff"], "is not a name for files; give another"),
        (["--format", "onnx", "--calibration", "nowhere"], "no such folder: nowhere"),
    ],
)
def test_wrong_arguments(weights, tmp_path, capsys, more, message):
    import re

    assert re.search(message, error_of(capsys, [weights, tmp_path / "out", *more]))
    assert not (tmp_path / "out").exists()


def test_a_calibration_folder_without_sound(weights, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    line = [weights, tmp_path / "out", "--format", "litert-int8", "--calibration"]
    assert error_of(capsys, [*line, folder]) == (
        f"error: --calibration {folder} holds no audio files (wav, flac, ogg, mp3); give a folder "
        "of recordings"
    )
    assert "is a file; give a folder" in error_of(capsys, [*line, folder / "a.txt"])
    soundfile.write(folder / "short.wav", np.zeros(4000), 8000)
    assert "holds 1 second of sound; give two" in error_of(capsys, [*line, folder])
    assert not (tmp_path / "out").exists()


def test_existing_files(weights, tmp_path, capsys):
    out = tmp_path / "out"
    line = [weights, out, "--format", "sparse-float32", "--quiet"]
    assert main(words(*line)) == 0
    before = tree(out)
    assert "tiny-waveform.float32.l3p exists; overwrite it, or give another name" in error_of(
        capsys, line
    )
    assert tree(out) == before
    assert main(words(*line, "--overwrite")) == 0


def test_a_folder_of_another_network_or_with_another_readme(weights, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(weights, out, "--format", "sparse-float32", "--quiet")) == 0
    save_network(create_network("sea64", filters=[2] * 8), tmp_path / "other.h5")
    line = [tmp_path / "other.h5", out, "--format", "sparse-float32"]
    assert "holds exports of another network (tiny-" in error_of(capsys, line)
    (out / "README.md").write_text("My notes")
    line = [weights, out, "--format", "sparse-int8"]
    assert "README.md is not a model card" in error_of(capsys, line)
    assert (out / "README.md").read_text() == "My notes"


@pytest.mark.parametrize(
    "text", ["{broken", "[]", '{"file": "other", "format": "", "source": "me", "error": 1}']
)
def test_other_json_files_in_the_folder_are_left_alone(weights, tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    (tmp_path / "other").touch()
    line = [weights, tmp_path, "--format", "sparse-float32", "--quiet", "--name", "a|b"]
    assert main(words(*line)) == 0
    assert (tmp_path / "other.json").read_text() == text
    card = (tmp_path / "README.md").read_text()
    assert "| a\\|b-waveform.float32.l3p | waveform" in card
    assert "| other |" not in card


def test_files_that_are_no_networks_of_sound(tmp_path, capsys):
    text = tmp_path / "text.h5"
    text.write_text("text")
    line = ["--format", "sparse-float32"]
    assert str(text) in error_of(capsys, [text, tmp_path / "out", *line])
    assert "no such weight file" in error_of(capsys, [tmp_path / "no.h5", tmp_path / "out", *line])
    images = tmp_path / "images.h5"
    save_network(create_network("vision"), images)
    message = error_of(capsys, [images, tmp_path / "out", *line])
    assert "audio" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(weights, tmp_path, capsys):
    (tmp_path / "file").write_text("text")
    line = [weights, tmp_path / "file" / "out", "--format", "sparse-float32"]
    assert "cannot make the folder" in error_of(capsys, line)


@pytest.mark.parametrize("package", ["ai_edge_litert", "onnx", "onnxruntime"])
def test_a_missing_engine_is_told_with_what_to_install(weights, tmp_path, package):
    name = "litert-float32" if package == "ai_edge_litert" else "onnx"
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest)
from l3prune.export import main
sys.exit(main([{str(weights)!r}, {str(tmp_path / "out")!r}, "--format", {name!r}]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(exports.__file__).parent.parent)},
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"needs {package.replace('_', '-')}, which is not installed: pip install" in line
    assert "l3prune[export]" in line


@pytest.mark.shared
@pytest.mark.slow
def test_the_published_network_in_all_formats(shared, tmp_path):
    out = tmp_path / "out"
    path = shared / "models" / "edgel3_sea_ust_audio_emb_64.h5.gz"
    line = [path, out, "--calibration", shared / "data" / "esc10", "--quiet"]
    assert main(words(*line, "--format", *FORMATS)) == 0
    records = [json.loads(each.read_text()) for each in out.glob("*.json")]
    assert len(records) == len(FORMATS)
    for record in records:
        assert record["windows"] == 64
        assert record["source"]["licence"] == "MIT"
        assert record["source"]["origin"].startswith("edgel3:sea-64, ")
