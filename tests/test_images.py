"""Image embeddings, and the flags of the openl3 and edgel3 commands."""

import os

import numpy as np
import pytest
import soundfile
import tensorflow as tf
from PIL import Image

from l3prune import models, openl3
from l3prune.__main__ import main as embed
from l3prune.embedding import L3PruneWarning
from l3prune.errors import L3PruneError, ParameterError
from l3prune.images import get_image_embedding, load_image, prepare_images, process_image_file
from l3prune.networks import create_network, inference
from l3prune.weights import save_network
from tests.conftest import chirp, make_tiny

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (240, 320, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vision():
    network = create_network("vision", filters=[2] * 8, embedding_size=32)
    for weight in network.weights:
        if "kernel" in weight.name:
            weight.assign(RNG.normal(0, 0.3, weight.shape))
    return network


@pytest.fixture(scope="module", autouse=True)
def published(tmp_path_factory):
    """A small file for every published name; the names asked for."""
    folder = tmp_path_factory.mktemp("published")
    asked = []

    def fetch(name, **_):
        network = models.find_weights(name).network
        asked.append(name)
        path = folder / f"{network}.h5"
        if not path.is_file():
            last = int(network[3:]) if network.startswith("sea") else 512
            save_network(create_network(network, filters=[2] * 7 + [last]), path)
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "fetch", fetch)
        yield asked


# What the network sees.


def test_values_by_type():
    shape = (1, 224, 224, 3)
    for dtype, value, expected in (
        (np.uint8, 0, -1.0),
        (np.uint8, 255, 1.0),
        (np.uint8, 51, -0.6),
        (np.uint16, 65535, 1.0),
        (np.int16, -32767, -1.0),
        (np.int16, 32767, 1.0),
        (np.int8, -128, -1.0),
        (np.float64, 0.25, 0.25),
        (np.float32, -3, -1.0),  # divided by the largest magnitude
        (np.float16, 7, 1.0),
    ):
        prepared = prepare_images(np.full(shape[1:], value, dtype))
        assert prepared.shape == shape
        assert prepared.dtype == np.float32
        np.testing.assert_allclose(prepared, expected, atol=1e-6)


def test_an_image_of_the_right_size_is_only_scaled_in_value():
    image = PHOTO[:224, :224]
    np.testing.assert_allclose(prepare_images(image)[0], image / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (300, 512), (512, 300), (225, 900)])
def test_larger_images_are_scaled_to_256_and_cut_to_the_middle(height, width):
    """A ramp stays a ramp: at each pixel of the cut, its place in the original."""
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows / height, columns / width, 0 * rows], axis=-1)
    (prepared,) = prepare_images(ramp)
    assert prepared.shape == (224, 224, 3)
    size = np.round(np.array([height, width]) * 256 / min(height, width))
    start = (size - 224) // 2
    middle = np.arange(224) + 0.5
    for axis, side in ((0, height), (1, width)):
        place = (middle + start[axis]) / size[axis] - 0.5 / side
        found = prepared[:, 112, 0] if axis == 0 else prepared[112, :, 1]
        np.testing.assert_allclose(found, place, atol=2e-3)


def test_floats_beyond_one_keep_their_proportions():
    image = np.random.default_rng(0).uniform(0, 255, (224, 224, 3))
    np.testing.assert_allclose(prepare_images(image)[0], image / image.max(), atol=1e-6)


def test_batches_of_frames_are_scaled_alike(vision):
    video = np.ones((3, 224, 224, 3)) * np.array([1.0, 2.0, 4.0])[:, None, None, None]
    video *= np.random.default_rng(0).random((224, 224, 3))
    one_by_one, _ = get_image_embedding(video, model=vision, batch_size=1)
    together, _ = get_image_embedding(video, model=vision, batch_size=3)
    np.testing.assert_allclose(one_by_one, together, rtol=1e-5, atol=1e-6)


def test_black_images_warn(vision):
    with pytest.warns(L3PruneWarning, match="all pixels are zero"):
        get_image_embedding(np.zeros((224, 224, 3)), model=vision)


def test_antialiasing():
    """Pixels that alternate average out when the image shrinks to half."""
    board = np.indices((512, 512)).sum(axis=0) % 2
    (prepared,) = prepare_images(np.repeat(255 * board[..., None], 3, axis=2).astype(np.uint8))
    assert np.abs(prepared).max() < 0.1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((224, 224)), r"image of shape \(224, 224\) given; give \(height, width, 3\)"),
        (np.zeros((224, 224, 4)), r"shape \(224, 224, 4\)"),
        (np.zeros((0, 224, 224, 3)), r"shape \(0, 224, 224, 3\)"),
        (np.zeros((223, 400, 3)), "223 x 400 pixels given; both sides must have at least 224"),
        (np.zeros((400, 223, 3)), "400 x 223 pixels"),
        (np.full((224, 224, 3), np.nan), "NaN or infinite"),
        (np.zeros((224, 224, 3), bool), "image is bool"),
        (np.zeros((224, 224, 3), complex), "image is complex128"),
        ("photo.png", r"shape \(\) given"),
    ],
)
def test_bad_images(vision, image, message):
    with pytest.raises(ParameterError, match=message):
        get_image_embedding(image, model=vision)


# Embeddings.


def test_embedding_is_the_networks_output(vision):
    embedding, timestamps = get_image_embedding(PHOTO, model=vision)
    assert timestamps is None
    np.testing.assert_allclose(embedding, inference(vision)(prepare_images(PHOTO)), atol=1e-6)


def test_frames_of_a_video_and_lists(vision):
    video = np.stack([PHOTO, PHOTO[::-1], PHOTO[:, ::-1]])
    alone = [get_image_embedding(frame, model=vision)[0][0] for frame in video]
    embedding, timestamps = get_image_embedding(video, 25, vision, batch_size=2)
    np.testing.assert_allclose(embedding, alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(timestamps, [0, 0.04, 0.08])
    both, times = get_image_embedding([PHOTO, video], [1, 30.0], vision)
    assert [part.shape for part in both] == [(1, 32), (3, 32)]
    assert times[1][-1] == pytest.approx(2 / 30)
    assert get_image_embedding([PHOTO], model=vision)[1] is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frame_rate": 0}, "frame_rate=0 is not a positive number"),
        ({"frame_rate": "25"}, "frame_rate='25'"),
        ({"image": [PHOTO] * 2, "frame_rate": [25]}, "2 images and 1 frame rates"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"model": "none.h5"}, "no such weight file"),
        ({"model": 3}, "model=3 is neither"),
        ({"model": None, "embedding_size": 6144}, "embedding_size=6144; allowed: 8192, 512"),
        ({"model": None, "input_repr": "mel64"}, "input_repr='mel64'"),
        ({"embedding_size": 512}, "a model is given, and embedding_size, which choose one"),
    ],
)
def test_bad_arguments(vision, changed, message):
    with pytest.raises(ParameterError, match=message):
        get_image_embedding(**{"image": PHOTO, "model": vision, **changed})


def test_audio_and_image_networks_are_not_mixed_up(vision):
    with pytest.raises(ParameterError, match="network 'sea64' is no network of images"):
        get_image_embedding(PHOTO, model=make_tiny())
    with pytest.raises(ParameterError, match="network 'vision' is no audio network"):
        openl3.get_audio_embedding(chirp(1, 48000), 48000, model=vision)


@pytest.mark.parametrize("input_repr", ["linear", "mel128", "mel256"])
@pytest.mark.parametrize("content_type", ["env", "music"])
@pytest.mark.parametrize("embedding_size", [512, 8192])
def test_every_openl3_image_network(published, input_repr, content_type, embedding_size):
    published.clear()
    embedding, _ = openl3.get_image_embedding(
        PHOTO,
        input_repr=input_repr,
        content_type=content_type,
        embedding_size=embedding_size,
        batch_size=32,
        verbose=True,
    )
    assert embedding.shape == (1, embedding_size)
    assert published == [f"openl3:image-{input_repr}-{content_type}"]
    model = openl3.models.load_image_embedding_model(input_repr, content_type, embedding_size)
    assert model.output_shape == (None, embedding_size)


# Files.


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "gif", "tiff"])
def test_formats(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(PHOTO // 8 * 8).save(path)
    image = load_image(path)
    assert image.shape == PHOTO.shape
    assert image.dtype == np.uint8


def test_grey_and_transparent_files_become_colour(tmp_path):
    Image.fromarray(PHOTO[..., 0]).save(tmp_path / "grey.png")
    assert (load_image(tmp_path / "grey.png") == PHOTO[..., :1]).all()
    Image.fromarray(np.dstack([PHOTO, PHOTO[..., 0]])).save(tmp_path / "glass.png")
    np.testing.assert_array_equal(load_image(tmp_path / "glass.png"), PHOTO)


def test_grey_of_16_bits(tmp_path):
    grey = np.random.default_rng(0).integers(0, 65536, (240, 250), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    image = load_image(tmp_path / "deep.png")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, np.repeat(grey[..., np.newaxis], 3, axis=2))


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file's name."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 300 300\n%%EndComments\n")
    trace = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {trace}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ParameterError, match=r"photo\.png cannot be decoded as an image"):
        load_image(path)
    assert not trace.exists()


def test_files_in_and_out(vision, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(path)
    output = process_image_file(path, tmp_path / "out", "x", vision)
    assert output == tmp_path / "out" / "photo_x.npz"
    with np.load(output, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["embedding"]
        np.testing.assert_array_equal(
            arrays["embedding"], get_image_embedding(PHOTO, model=vision)[0]
        )
    output.write_text("mine")
    process_image_file(path, tmp_path / "out", "x", vision, overwrite=False)
    assert output.read_text() == "mine"
    openl3.process_image_file([path], tmp_path / "out", "x", vision, overwrite=True)
    assert output.stat().st_size > 300


def test_bad_files(vision, tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(PHOTO).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(PHOTO[:100]).save(tmp_path / "small.png")
    for name, message in {
        "text.png": r"text\.png cannot be decoded as an image",
        "cut.png": r"cut\.png cannot be decoded as an image",
        "none.png": "no such image file",
        "small.png": r"small\.png: image of 100 x 320 pixels",
    }.items():
        with pytest.raises(L3PruneError, match=message):
            process_image_file(tmp_path / name, tmp_path / "out", None, vision)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ParameterError, match=r"small\.png cannot be decoded as an image"):
        load_image(tmp_path / "small.png")


# The command.


@pytest.fixture
def files(tmp_path):
    """A folder with two pictures and two recordings."""
    folder = tmp_path / "files"
    folder.mkdir()
    Image.fromarray(PHOTO).save(folder / "one.png")
    Image.fromarray(PHOTO[::-1]).save(folder / "two.JPG", format="JPEG")
    soundfile.write(folder / "a.wav", chirp(1, 48000), 48000)
    soundfile.write(folder / "b.flac", chirp(1, 44100), 44100)
    return folder


def shapes(folder):
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found[path.name] = arrays["embedding"].shape
    return found


def test_images_from_the_command_line(files, tmp_path, published, capsys):
    published.clear()
    out = tmp_path / "out"
    line = f"image {files} -o {out} -x i -i linear -c env -is 512 -ib 4 -q".split()
    assert embed(line) == 0
    assert shapes(out) == {"one_i.npz": (1, 512), "two_i.npz": (1, 512)}
    assert set(published) == {"openl3:image-linear-env"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "name", "size", "windows"),
    [
        # edgel3's own flags, short and long.
        ("-q", "edgel3:sparse-95.45-ft", 512, 6),
        ("-mtype sea -e 64 -t 0.2 -n -q", "edgel3:sea-64", 64, 1),
        (
            "--model-type sparse --retrain-type kd --model-sparsity 53.5 --hop-size 0.5 --quiet",
            "edgel3:sparse-53.5-kd",
            512,
            2,
        ),
        ("-retrain kd -sp 87 -q", "edgel3:sparse-87.0-kd", 512, 6),
        # openl3's.
        ("audio -t 0.5 -q", "openl3:mel256-music", 6144, 2),
        ("audio -i mel128 -c env -as 512 -n -t 0.2 -ab 8 -q", "openl3:mel128-env", 512, 1),
        (
            "audio --input-repr linear --content-type music --audio-embedding-size 512 "
            "--no-audio-centering --audio-hop-size 0.5 --audio-batch-size 64 "
            "--audio-frontend librosa --overwrite --quiet",
            "openl3:linear-music",
            512,
            1,
        ),
        ("-as 512 -af kapre -q", "openl3:mel256-music", 512, 6),
        ("--model openl3:mel256-env-6144 -t 1 -q", "openl3:mel256-env", 6144, 2),
    ],
)
def test_flags_of_both_packages(files, tmp_path, published, line, name, size, windows):
    published.clear()
    words = line.split()
    words.insert(1 if words[0] == "audio" else 0, str(files))
    assert embed([*words, "--output-dir", str(tmp_path / "out")]) == 0
    assert set(published) == {name}
    assert shapes(tmp_path / "out") == {"a.npz": (windows, size), "b.npz": (windows, size)}


def test_existing_outputs_are_kept_unless_overwritten(files, tmp_path, capsys):
    out = tmp_path / "out"
    line = [str(files), "-o", str(out), "-mtype", "sea", "-e", "64"]
    assert embed(line) == 0
    (out / "a.npz").write_text("mine")
    (out / "b.npz").unlink()
    capsys.readouterr()
    assert embed(line) == 0
    kept, engine = capsys.readouterr().out.splitlines()
    assert engine.startswith("engine: dense (100.0% of")
    assert kept == "kept: 1 outputs that exist already; --overwrite makes them anew"
    assert (out / "a.npz").read_text() == "mine"
    assert (out / "b.npz").stat().st_size > 500
    assert embed([*line, "-ow", "-q"]) == 0
    assert set(shapes(out)) == {"a.npz", "b.npz"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("FILES -mtype dense", "model_type='dense'; allowed: 'sea', 'sparse'"),
        ("FILES -e 50", "emb_dim=50; allowed"),
        ("FILES -retrain x", "retrain_type='x'; allowed"),
        ("FILES -sp 40", "sparsity=40.0; allowed"),
        ("FILES -sp -95.45", "sparsity=-95.45; allowed"),
        ("FILES -i mel64", "input_repr='mel64'; allowed"),
        ("FILES -c speech", "content_type='speech'; allowed"),
        ("FILES -as 8192", "embedding_size=8192; allowed: 6144, 512"),
        ("FILES -af torch -i mel256", "frontend='torch'; allowed"),
        ("FILES -af librosa", "the librosa front end needs one"),
        ("FILES -e 64 -c env", "emb_dim choose EdgeL3's weights and content_type OpenL3's"),
        ("FILES --model edgel3:sea-64 -e 64", "--model is given, and emb_dim, which choose"),
        ("FILES --model edgel3:sea-65", "no published weights 'edgel3:sea-65'"),
        ("FILES -is 512", "--image-embedding-size is not for audio files"),
        ("FILES -ib 8", "--image-batch-size is not for audio files"),
        ("image FILES -t 0.5", "--hop-size is not for image files"),
        ("image FILES -n", "--no-centering is not for image files"),
        ("image FILES -ab 8", "--batch-size is not for image files"),
        ("image FILES -ib 0", "batch_size=0 is not a positive whole number"),
        ("FILES --model=", "no such weight file"),
        ("FILES -q -x " + 300 * "x", "File name too long"),
        (300 * "x", "File name too long"),
        ("image FILES -as 512", "--audio-embedding-size is not for image files"),
        ("image FILES -is 6144", "embedding_size=6144; allowed: 8192, 512"),
        ("image FILES --model edgel3:sea-64", "network 'sea64' is no network of images"),
        ("FILES --model openl3:image-mel256-env", "network 'vision' is no audio network"),
        ("image /nowhere/a.png", "no such file or folder: /nowhere/a.png"),
        ("image EMPTY", "no image files (.png, .jpg"),
        ("audio EMPTY", "no audio files (.wav, .flac"),
        ("video FILES", "no such file or folder: video"),
    ],
)
def test_wrong_lines(files, tmp_path, capsys, line, message):
    (tmp_path / "empty").mkdir()
    words = line.replace("FILES", str(files)).replace("EMPTY", str(tmp_path / "empty")).split()
    assert embed([*words, "-o", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_a_file_called_audio_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("audio", chirp(1, 8000), 8000, format="WAV")
    assert embed(["audio", "-mtype", "sea", "-e", "64", "-q"]) == 0
    assert shapes(tmp_path) == {"audio.npz": (6, 64)}


def teardown_module():
    tf.keras.backend.clear_session()
