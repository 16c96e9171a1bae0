import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tf_keras as keras

import l3prune.embedding
from l3prune import graph, surgery
from l3prune.audio import frame_audio, load_audio, to_mono
from l3prune.embedding import (
    L3PruneWarning,
    get_embedding,
    load_model,
    output_path,
    process_file,
)
from l3prune.errors import L3PruneError, ParameterError
from l3prune.networks import create_network, inference
from l3prune.plan import plan_layerwise
from l3prune.weights import load_network, save_network
from tests.conftest import chirp, make_tiny


@pytest.fixture(scope="module")
def network():
    """A tiny network for tests that only listen to it."""
    return make_tiny()


@pytest.fixture
def tiny_file(tiny, tmp_path):
    path = tmp_path / "tiny.h5"
    save_network(tiny, path)
    return path


# Frames and timestamps: OpenL3's rules.


@pytest.mark.parametrize(
    ("seconds", "hop_size", "center", "frames"),
    [
        (1, 0.1, True, 6),  # 1 + 0.5 s in front: starts at 0, .1 … .5
        (1, 0.1, False, 1),
        (1, 0.2, False, 1),
        (2, 0.1, True, 16),
        (2, 0.1, False, 11),
        (2, 0.5, False, 3),
        (2, 0.7, False, 3),  # the last window is padded so that the last sample is heard
        (2, 1, False, 2),
        (2.00025, 1, False, 3),
        (0.5, 0.1, True, 1),
        (0.50025, 0.1, True, 2),
        (3.5, 3, False, 2),  # a hop longer than a window leaves gaps
        (1.5, 3, False, 1),  # but no window is behind the last sample
        (1.5, 1e300, True, 1),
    ],
)
def test_frames_and_timestamps(network, seconds, hop_size, center, frames):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if seconds < 1:
            warnings.simplefilter("ignore", L3PruneWarning)
        embedding, timestamps = get_embedding(
            chirp(seconds, 8000), 8000, model=network, hop_size=hop_size, center=center
        )
    assert embedding.shape == (frames, 4)
    assert embedding.dtype == np.float32
    assert timestamps.dtype == np.float64
    assert np.isfinite(embedding).all()
    np.testing.assert_array_equal(timestamps, np.arange(frames) * hop_size)


def test_embedding_is_the_networks_output_of_the_windows(network):
    audio = chirp(1.7, 8000)
    padded = np.concatenate([np.zeros(4000), audio, np.zeros(8000)]).astype(np.float32)
    embedding, _ = get_embedding(audio, 8000, model=network, hop_size=0.25)
    for number, vector in enumerate(embedding):
        window = padded[2000 * number : 2000 * number + 8000]
        expected = network(window[np.newaxis, np.newaxis], training=False).numpy()[0]
        np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-5)


# What goes in.


def test_channels_are_averaged(network):
    left, right = chirp(1.2, 8000), chirp(1.2, 8000, 500, 600)
    stereo, _ = get_embedding(np.stack([left, right], axis=1), 8000, model=network)
    mono, _ = get_embedding((left + right) / 2, 8000, model=network)
    np.testing.assert_allclose(stereo, mono, rtol=1e-5, atol=1e-5)
    column, _ = get_embedding(((left + right) / 2)[:, np.newaxis], 8000, model=network)
    np.testing.assert_array_equal(column, mono)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050.0, 44100, 48000, 96000])
def test_any_rate(network, rate):
    embedding, timestamps = get_embedding(chirp(2, int(rate)), rate, model=network)
    direct, _ = get_embedding(chirp(2, 8000), 8000, model=network)
    assert embedding.shape == (16, 4)
    assert timestamps[-1] == pytest.approx(1.5)
    # The same sweep, up to the resampler's rounding of its edges.
    assert np.corrcoef(embedding.ravel(), direct.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_any_float_type(network, kind):
    audio = chirp(1.2, 8000).astype(np.float16)
    expected, _ = get_embedding(audio.astype(np.float32), 8000, model=network)
    embedding, _ = get_embedding(audio.astype(kind), 8000, model=network)
    np.testing.assert_array_equal(embedding, expected)


def test_lists_and_views_are_read_and_left_alone(network):
    audio = np.asarray(chirp(2.4, 8000))
    view = audio[::2]
    before = audio.copy()
    expected, _ = get_embedding(view.copy(), 8000, model=network)
    for given in (view, list(map(float, view)), view[::-1][::-1]):
        np.testing.assert_array_equal(get_embedding(given, 8000, model=network)[0], expected)
    np.testing.assert_array_equal(audio, before)


@pytest.mark.parametrize(
    ("sr", "hop_size", "batch_size"),
    [
        (np.int64(44100), 1, np.int32(3)),
        (np.float32(44100), np.int64(1), np.uint8(3)),
        (np.float64(44100), np.float32(1), np.int64(3)),
        (44100.0, np.float16(1), 3),
    ],
)
def test_numpy_scalars(network, sr, hop_size, batch_size):
    audio = chirp(3, 44100)
    expected = get_embedding(audio, 44100, model=network, hop_size=1.0, batch_size=3)
    given = get_embedding(
        audio, sr, model=network, hop_size=hop_size, batch_size=batch_size, center=np.True_
    )
    np.testing.assert_array_equal(given[0], expected[0])
    np.testing.assert_array_equal(given[1], [0.0, 1.0, 2.0, 3.0][: len(expected[1])])
    assert given[1].dtype == np.float64


@pytest.mark.parametrize("samples", [1, 48, 7999])
def test_short_audio_is_padded_with_a_warning(network, samples):
    audio = chirp(2, 8000)[100 : 100 + samples]
    with pytest.warns(L3PruneWarning, match=r"s long; it was zero-padded to one second"):
        embedding, timestamps = get_embedding(audio, 8000, model=network, center=False)
    assert embedding.shape == (1, 4)
    assert np.isfinite(embedding).all()
    assert timestamps.tolist() == [0]
    padded = np.pad(audio, (0, 8000 - samples))
    expected, _ = get_embedding(padded, 8000, model=network, center=False)
    np.testing.assert_array_equal(embedding, expected)


def test_48_samples_centred_are_one_window(network):
    with pytest.warns(L3PruneWarning, match="0.006 s long"):
        embedding, timestamps = get_embedding(chirp(1, 8000)[1:49], 8000, model=network)
    assert embedding.shape == (1, 4)
    assert timestamps.tolist() == [0]


def test_warnings_point_to_the_caller(network):
    with pytest.warns(L3PruneWarning) as caught:
        get_embedding(np.zeros(48), 8000, model=network)
    assert {Path(warning.filename).name for warning in caught} == {"test_embedding.py"}
    assert len(caught) == 2


def test_silence_has_an_embedding_and_a_warning(network):
    with pytest.warns(L3PruneWarning, match="all samples are zero") as caught:
        embedding, _ = get_embedding(np.zeros((16000, 2)), 16000, model=network)
    assert len(caught) == 1
    assert embedding.shape == (6, 4)
    assert np.isfinite(embedding).all()
    np.testing.assert_allclose(embedding, np.broadcast_to(embedding[0], embedding.shape), 1e-6)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([], "audio is empty"),
        (np.zeros((0, 2)), "audio is empty"),
        (np.zeros((8000, 0)), "audio is empty"),
        (np.ones((10, 10, 10)), "3 dimensions"),
        (np.float32(1), "0 dimensions"),
        (np.array([0.1, np.nan]), "NaN or infinite"),
        (np.array([[0.1, np.inf], [0, 0]]), "NaN or infinite"),
        (np.array([np.inf, -np.inf]), "NaN or infinite"),
        (np.ones(8000, np.int16), "divide int16 samples by 32768"),
        (np.ones(8000, bool), "audio is bool"),
        (np.ones(8000, complex), "audio is complex128"),
        (np.array(["a", "b"]), "audio is <U1"),
        ("clip.wav", "dimensions"),
        (None, "dimensions"),
    ],
)
def test_bad_audio(network, audio, message):
    with pytest.raises(ParameterError, match=message):
        get_embedding(audio, 8000, model=network)


@pytest.mark.parametrize("sr", [0, -8000, np.nan, np.inf, 1e300, "8000", None, True, [8000]])
def test_bad_sample_rate(network, sr):
    with pytest.raises(ParameterError, match=r"sample rate .* is not"):
        get_embedding(chirp(1, 8000), sr, model=network)


@pytest.mark.parametrize("hop_size", [0, -0.1, np.nan, np.inf, 1e-5, "0.1", None, True, [0.1]])
def test_bad_hop_size(network, hop_size):
    with pytest.raises(ParameterError, match="hop_size"):
        get_embedding(chirp(1, 8000), 8000, model=network, hop_size=hop_size)


@pytest.mark.parametrize("batch_size", [0, -1, 1.0, 1.5, "2", None, True, np.nan, [2]])
def test_bad_batch_size(network, batch_size):
    with pytest.raises(ParameterError, match=r"batch_size=.* is not a positive whole number"):
        get_embedding(chirp(1, 8000), 8000, model=network, batch_size=batch_size)


@pytest.mark.parametrize("center", ["True", 1, 0, None])
def test_bad_center(network, center):
    with pytest.raises(ParameterError, match=r"center=.* is neither True nor False"):
        get_embedding(chirp(1, 8000), 8000, model=network, center=center)


def test_bad_model(network, tmp_path):
    audio = chirp(1, 8000)
    for model in (3, np.zeros(3), lambda batch: batch):
        with pytest.raises(ParameterError, match="neither a weight file's path, nor"):
            get_embedding(audio, 8000, model=model)
    for model in (tmp_path / "none.h5", str(tmp_path), ""):
        with pytest.raises(L3PruneError, match="no such weight file"):
            get_embedding(audio, 8000, model=model)
    text = tmp_path / "text.h5"
    text.write_text("text")
    with pytest.raises(L3PruneError, match=r"text\.h5 is not an HDF5 weight file"):
        get_embedding(audio, 8000, model=text)
    foreign = keras.Sequential([keras.layers.Dense(1, input_shape=(2,))])
    with pytest.raises(ParameterError, match="was not made by create_network"):
        get_embedding(audio, 8000, model=foreign)


# What comes out does not depend on how it is computed.


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 1000])
def test_batch_size_changes_nothing(network, batch_size):
    audio = chirp(2, 8000)
    expected, _ = get_embedding(audio, 8000, model=network, batch_size=7)
    embedding, _ = get_embedding(audio, 8000, model=network, batch_size=batch_size)
    np.testing.assert_allclose(embedding, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_log_mel_input_is_the_same_network(tiny_file, rate):
    audio = chirp(2, rate)
    expected, times = get_embedding(audio, rate, model=tiny_file, batch_size=5)
    log_mel = load_network(tiny_file, input="log_mel")
    assert len(log_mel.input_shape) == 4
    embedding, log_mel_times = get_embedding(audio, rate, model=log_mel, batch_size=5)
    np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(times, log_mel_times)


def test_masks_and_zeros_are_the_same_network(network):
    audio = chirp(2, 8000)
    masked = surgery.apply_masks(network, plan_layerwise(graph.conv_weights(network), 0.5))
    expected, _ = get_embedding(audio, 8000, model=masked)
    stripped, _ = get_embedding(audio, 8000, model=surgery.strip_masks(masked))
    np.testing.assert_array_equal(stripped, expected)
    whole, _ = get_embedding(audio, 8000, model=network)
    assert abs(whole - expected).max() > 1e-3


def test_changed_weights_change_the_embedding(tiny):
    # The compiled function of a network must not keep its old weights.
    audio = chirp(1, 8000)
    before, _ = get_embedding(audio, 8000, model=tiny)
    bias = tiny.get_layer("batch_normalization_9").beta
    bias.assign(bias + 100)
    after, _ = get_embedding(audio, 8000, model=tiny)
    np.testing.assert_allclose(after, before + 100, atol=50)
    assert abs(after - before).min() > 1


@pytest.mark.slow
def test_many_networks_are_quiet():
    # TensorFlow warns, twice a process, of functions that the same line makes again and again.
    code = """
from l3prune.quiet import load_tensorflow
load_tensorflow()
from l3prune.embedding import get_embedding
from tests.conftest import chirp, make_tiny
for _ in range(6):
    get_embedding(chirp(1, 8000), 8000, model=make_tiny(), hop_size=1)
"""
    root = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore:all samples are zero")
def test_published_network_gives_the_reference_embedding(sea64, reference):
    windows, expected = reference["waveform"], reference["embedding"]
    assert windows.shape[1:] == (8000,)
    worst = 0.0
    for window, vector in zip(windows, expected, strict=True):
        embedding, timestamps = get_embedding(window, 8000, model=sea64, center=False)
        assert embedding.shape == (1, 64)
        assert timestamps.tolist() == [0]
        worst = max(worst, float(abs(embedding[0] - vector).max()))
    assert worst < 1e-3


# A path as the model.


def test_a_path_is_the_network_in_it_and_read_once(tiny, tiny_file, monkeypatch):
    audio = chirp(1.5, 8000)
    expected, _ = get_embedding(audio, 8000, model=tiny)
    reads = []

    def counted(path, name):
        reads.append(path)
        return load_network(path, name)

    monkeypatch.setattr(l3prune.weights, "load_network", counted)
    monkeypatch.chdir(tiny_file.parent)
    for model in (tiny_file, str(tiny_file), "tiny.h5", Path("tiny.h5")):
        embedding, _ = get_embedding(audio, 8000, model=model)
        np.testing.assert_array_equal(embedding, expected)
    assert len(reads) == 1


def test_a_changed_file_is_read_again(tiny, tiny_file):
    first = load_model(tiny_file)
    assert load_model(tiny_file) is first
    times = tiny_file.stat()
    tiny.get_layer("batch_normalization_9").beta.assign(np.full(4, 5, np.float32))
    save_network(tiny, tiny_file)
    # Even when the clock did not advance: a copy that keeps its time, a coarse file system.
    os.utime(tiny_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = load_model(tiny_file)
    assert second is not first
    np.testing.assert_array_equal(second.get_layer("batch_normalization_9").beta, [5] * 4)
    tiny_file.unlink()
    with pytest.raises(L3PruneError, match="no such weight file"):
        load_model(tiny_file)


def test_arguments_of_a_path_may_be_lists(tiny_file):
    network = load_model(tiny_file, filters=[4] * 8, input="log_mel")
    assert load_model(tiny_file, input="log_mel", filters=[4] * 8) is network
    assert load_model(tiny_file) is not network


# Files.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("/a/b/audio.wav", "/out/dir", "embedding"), "/out/dir/audio_embedding.npz"),
        (("/a/b/audio.wav", None, "embedding"), "/a/b/audio_embedding.npz"),
        (("/a/b/audio.wav",), "/a/b/audio.npz"),
        (("/a/b/audio.wav", "/out", ""), "/out/audio.npz"),
        (("a.b.flac", "out"), "out/a.b.npz"),
        (("noending", "out"), "out/noending.npz"),
    ],
)
def test_output_path(arguments, expected):
    assert output_path(*arguments) == Path(expected)


def test_a_suffix_names_no_folder():
    with pytest.raises(ParameterError, match=r"suffix='\.\./x' has a '/'"):
        output_path("/a/audio.wav", None, "../x")


def test_process_file(network, sounds, tmp_path):
    output = process_file(
        sounds / "chirp.wav",
        tmp_path / "new" / "out",
        "x",
        model=network,
        hop_size=0.25,
        center=False,
    )
    assert output == tmp_path / "new" / "out" / "chirp_x.npz"
    assert [path.name for path in output.parent.iterdir()] == ["chirp_x.npz"]
    audio, rate = load_audio(sounds / "chirp.wav")
    expected = get_embedding(audio, rate, model=network, hop_size=0.25, center=False)
    with np.load(output, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["embedding", "timestamps"]
        np.testing.assert_array_equal(arrays["embedding"], expected[0])
        np.testing.assert_array_equal(arrays["timestamps"], expected[1])
        assert arrays["embedding"].dtype == np.float32
        assert arrays["embedding"].shape == (5, 4)


def test_process_file_writes_beside_the_audio_and_over_the_old(network, sounds):
    (sounds / "noise.npz").write_text("old")
    assert process_file(sounds / "noise.flac", model=network) == sounds / "noise.npz"
    with np.load(sounds / "noise.npz") as arrays:
        assert len(arrays["embedding"]) == 16
    assert sorted(path.name for path in sounds.glob("noise*")) == ["noise.flac", "noise.npz"]


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_process_file_formats(network, tmp_path, ending, rate):
    path = tmp_path / f"clip.{ending}"
    soundfile.write(path, np.stack([chirp(1.5, rate)] * 2, axis=1), rate)
    with np.load(process_file(path, model=network)) as arrays:
        # Lossy formats may add samples, at most a tenth of a second here.
        assert len(arrays["embedding"]) in (11, 12)
        assert np.isfinite(arrays["embedding"]).all()


@pytest.mark.parametrize("existing", [False, True])
def test_nothing_is_left_when_saving_fails(network, sounds, tmp_path, monkeypatch, existing):
    out = tmp_path / "out"
    out.mkdir()
    if existing:
        (out / "chirp.npz").write_text("old")

    def full(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(L3PruneError, match="No space left on device"):
        process_file(sounds / "chirp.wav", out, model=network)
    assert [path.read_text() for path in out.iterdir()] == ["old"] * existing


def test_nothing_is_left_when_interrupted(network, sounds, tmp_path, monkeypatch):
    def interrupted(file, array):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        process_file(sounds / "chirp.wav", tmp_path / "out", model=network)
    assert not (tmp_path / "out").exists()


def test_long_files_are_read_in_blocks(network, tmp_path, monkeypatch):
    """As if whole: 25 s make three blocks, and the windows across their edges are there."""
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (25 * 11025, 2))
    soundfile.write(tmp_path / "long.wav", audio, 11025, subtype="DOUBLE")
    longest = []
    original = l3prune.embedding.read_blocks

    def counted(file):
        for block in original(file):
            longest.append(len(block))
            yield block

    monkeypatch.setattr(l3prune.embedding, "read_blocks", counted)
    with np.load(process_file(tmp_path / "long.wav", model=network, hop_size=0.3)) as arrays:
        embedding, timestamps = arrays["embedding"], arrays["timestamps"]
    assert longest == [110250, 110250, 55125]
    mono = to_mono(audio, 11025, 8000)
    windows = frame_audio(mono, 8000, hop_size=0.3, center=True)
    expected = inference(network)(windows[:, np.newaxis])
    np.testing.assert_allclose(embedding, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(timestamps, np.arange(len(windows)) * 0.3)


def test_large_networks_take_fewer_windows_at_once(monkeypatch):
    network = create_network("mel256", filters=[64] + [1] * 7)
    sizes = []
    infer = inference(network)
    monkeypatch.setattr(
        l3prune.networks, "inference", lambda _: lambda x: sizes.append(len(x)) or infer(x)
    )
    get_embedding(chirp(4, 48000), 48000, network)
    assert sizes == [10, 10, 10, 6]
    sizes.clear()
    get_embedding(chirp(1, 48000), 48000, network, batch_size=4)
    assert sizes == [4, 2]


def test_bad_files(network, sounds, tmp_path):
    out = tmp_path / "out"
    (sounds / "text.wav").write_text("text")
    soundfile.write(sounds / "nan.wav", np.full(8000, np.nan), 8000, subtype="FLOAT")
    soundfile.write(sounds / "empty.wav", np.zeros(0), 8000)
    flac = (sounds / "noise.flac").read_bytes()
    (sounds / "cut.flac").write_bytes(flac[: len(flac) // 2])
    for name, message in {
        "text.wav": r"text\.wav cannot be decoded",
        "nan.wav": r"nan\.wav: audio has NaN",
        "empty.wav": r"empty\.wav: audio has no samples",
        "cut.flac": r"cut\.flac cannot be decoded",
        "none.wav": "no such audio file",
        "deep": "no such audio file",
    }.items():
        with pytest.raises(L3PruneError, match=message):
            process_file(sounds / name, out, model=network)
    with pytest.raises(L3PruneError, match="cannot make the folder"):
        process_file(sounds / "chirp.wav", sounds / "noise.flac" / "out", model=network)
    assert not out.exists()


def test_names_that_are_hard_for_a_shell(network, sounds, tmp_path):
    for name in ("Zürich – 1 [a]*.wav", "-x.wav", "a b.wav", "日本.wav", "x" * 240 + ".wav"):
        path = tmp_path / name
        shutil.copy(sounds / "chirp.wav", path)
        assert process_file(path, model=network).is_file()


def test_files_and_training_cut_the_same_windows():
    # Without centring, an embedding's windows are those that distillation trains on.
    audio = chirp(1.7, 8000)
    windows = frame_audio(audio, 8000, hop_size=0.25, center=False)
    assert len(windows) == 4
    np.testing.assert_array_equal(windows[1], audio[2000:10000])
