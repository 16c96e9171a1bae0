"""What scripts written for edgel3 0.2 and openl3 0.4 rely on holds for their namesakes here.

The published files are replaced by small networks of the same inputs and embedding sizes.
"""

import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from l3prune import edgel3, models, openl3
from l3prune.embedding import L3PruneWarning, load_model
from l3prune.errors import L3PruneError, ParameterError
from l3prune.networks import create_network, l3
from l3prune.weights import save_network
from tests.conftest import chirp

SPARSITIES = (53.5, 63.5, 72.3, 87.0, 95.45)


@pytest.fixture(scope="module", autouse=True)
def published(tmp_path_factory):
    """A file for every published name, without a download; a list of the names asked for."""
    folder = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(0)
    asked = []

    def fetch(name, **_):
        weights = models.find_weights(name)
        asked.append(name)
        path = folder / f"{weights.network}.h5"
        if not path.is_file():
            last = int(weights.network[3:]) if weights.network.startswith("sea") else 512
            network = create_network(weights.network, filters=[4] * 7 + [last])
            for weight in network.weights:
                if "kernel" in weight.name:
                    weight.assign(rng.normal(0, 0.2, weight.shape))
            save_network(network, path)
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "fetch", fetch)
        yield asked


@pytest.fixture(scope="module")
def recordings():
    """The test audio of both packages, generated."""
    return {
        "chirp_mono": (chirp(2, 48000), 48000),
        "chirp_stereo": (np.stack([chirp(2, 48000), chirp(2, 48000, 50, 90)], axis=1), 48000),
        "chirp_44k": (chirp(2, 44100), 44100),
        "chirp_8k": (chirp(1, 8000), 8000),
        "chirp_1s": (chirp(1, 48000), 48000),
        "silence": (np.zeros(96000, np.float32), 48000),
        "short": (chirp(1, 48000)[1:49], 48000),
        "empty": (np.zeros(0, np.float32), 48000),
    }


@pytest.fixture
def folder(recordings, tmp_path):
    for name, (audio, rate) in recordings.items():
        soundfile.write(tmp_path / f"{name}.wav", audio, rate, subtype="PCM_16")
    return tmp_path


def check(embedding, timestamps, size, hop_size=0.1):
    assert embedding.dtype == np.float32
    assert embedding.shape == (len(timestamps), size)
    assert timestamps.shape == (len(embedding),)
    assert (abs(np.diff(timestamps) - hop_size) < 1e-5).all()
    assert np.isfinite(embedding).all()
    # Of the audio, not of nothing: windows differ.
    assert len(embedding) == 1 or np.ptp(embedding, axis=0).max() > 0


# edgel3: get_embedding


@pytest.mark.parametrize("retrain_type", ["ft", "kd"])
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_every_sparse_network(recordings, published, retrain_type, sparsity):
    published.clear()
    embedding, timestamps = edgel3.get_embedding(
        *recordings["chirp_mono"],
        model_type="sparse",
        retrain_type=retrain_type,
        sparsity=sparsity,
        center=True,
        hop_size=0.1,
        verbose=0,
    )
    check(embedding, timestamps, 512)
    assert published == [f"edgel3:sparse-{sparsity}-{retrain_type}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("emb_dim", "name"),
    [(512, "chirp_8k"), (256, "chirp_8k"), (128, "chirp_mono"), (64, "chirp_mono")],
)
def test_every_sea_network(recordings, published, emb_dim, name):
    published.clear()
    embedding, timestamps = edgel3.get_embedding(
        *recordings[name], model_type="sea", emb_dim=emb_dim, center=True, hop_size=0.1
    )
    check(embedding, timestamps, emb_dim)
    assert published == [f"edgel3:sea-{emb_dim}"]


def test_defaults_are_edgel3s(recordings, published):
    published.clear()
    check(*edgel3.get_embedding(*recordings["chirp_mono"]), 512)
    assert published == ["edgel3:sparse-95.45-ft"]


@pytest.mark.parametrize("name", ["chirp_mono", "chirp_stereo", "chirp_44k"])
def test_a_loaded_model_gives_the_same(recordings, name):
    model = edgel3.models.load_embedding_model(
        model_type="sparse", emb_dim=128, retrain_type="ft", sparsity=95.45
    )
    given = edgel3.get_embedding(*recordings[name], model=model, center=True, verbose=1)
    check(*given, 512)
    chosen = edgel3.get_embedding(*recordings[name], sparsity=95.45)
    assert np.abs(given[0] - chosen[0]).max() < 1e-5
    assert np.abs(given[1] - chosen[1]).max() < 1e-5


def test_dcase_util_calls_it_so(recordings):
    """dcase_util's EdgeL3Extractor: keywords for the model, a hop of 20 ms, verbose False."""
    model = edgel3.models.load_embedding_model(retrain_type="ft", sparsity=95.45)
    audio, rate = recordings["chirp_1s"]
    embedding, _ = edgel3.get_embedding(
        audio=audio, sr=rate, model=model, center=True, hop_size=0.02, verbose=False
    )
    assert embedding.T.shape == (512, 26)


def test_positions_are_edgel3s(recordings):
    audio, rate = recordings["chirp_8k"]
    by_position = edgel3.get_embedding(audio, rate, None, "sea", 64, "ft", 95.45, False, 0.2, 0)
    by_keyword = edgel3.get_embedding(
        audio, rate, model_type="sea", emb_dim=64, center=False, hop_size=0.2, verbose=0
    )
    np.testing.assert_array_equal(by_position[0], by_keyword[0])
    assert len(by_position[0]) == 1


def test_short_and_silent_audio(recordings):
    with pytest.warns(edgel3.EdgeL3Warning, match="zero-padded"):
        embedding, timestamps = edgel3.get_embedding(*recordings["short"])
    assert embedding.shape == (1, 512)
    assert timestamps == [0]
    assert np.isfinite(embedding).all()
    with pytest.warns(edgel3.EdgeL3Warning, match="all samples are zero"):
        embedding, timestamps = edgel3.get_embedding(*recordings["silence"])
    assert embedding.shape == (16, 512)
    assert (abs(np.diff(timestamps) - 0.1) < 1e-5).all()
    assert np.isfinite(embedding).all()


def test_frame_counts(recordings):
    audio, rate = recordings["chirp_1s"]
    centred = edgel3.get_embedding(audio, rate, center=True, hop_size=0.1, verbose=1)
    assert len(centred[0]) == 1 + int((len(audio) + rate // 2 - rate) / int(0.1 * rate)) == 6
    assert len(edgel3.get_embedding(audio, rate, center=False, hop_size=0.1)[0]) == 1
    assert len(edgel3.get_embedding(audio, rate, center=False, hop_size=0.2, verbose=0)[0]) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"audio": np.zeros(0)}, "audio is empty"),
        ({"model": "invalid"}, "no such weight file: invalid"),
        ({"model": 3}, "model=3 is neither"),
        ({"model_type": "invalid"}, "model_type='invalid'; allowed: 'sea', 'sparse'"),
        ({"emb_dim": 50}, "emb_dim=50; allowed: 512, 256, 128, 64"),
        ({"retrain_type": "invalid"}, "retrain_type='invalid'; allowed: 'ft', 'kd'"),
        ({"retrain_type": 1}, "retrain_type=1; allowed"),
        ({"sparsity": 40}, "sparsity=40; allowed: 53.5"),
        ({"sparsity": -95.45}, "sparsity=-95.45; allowed"),
        ({"sparsity": "invalid"}, "sparsity='invalid'; allowed"),
        ({"sparsity": np.array([95.45])}, "sparsity=array"),
        ({"hop_size": -1}, "hop_size=-1 is not a positive number"),
        ({"hop_size": 0}, "hop_size=0 is not a positive number"),
        ({"verbose": -1}, "verbose=-1; allowed: 0, 1"),
        ({"center": "invalid"}, "center='invalid' is neither True nor False"),
        ({"audio": np.ones((10, 10, 10))}, "3 dimensions"),
        ({"sr": -1}, "sample rate -1 is not in"),
        ({"sr": "invalid"}, "sample rate 'invalid' is not in"),
    ],
)
def test_edgel3_errors(recordings, changed, message):
    audio, rate = recordings["chirp_mono"]
    arguments = {"audio": audio, "sr": rate, **changed}
    with pytest.raises(edgel3.EdgeL3Error, match=message) as caught:
        edgel3.get_embedding(**arguments)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, L3PruneError)


def test_errors_come_in_edgel3s_order(recordings):
    """Of several wrong arguments, the one that edgel3 checks first is named."""
    wrong = {
        "audio": np.zeros(0),
        "model": "invalid",
        "model_type": "invalid",
        "emb_dim": 50,
        "retrain_type": "invalid",
        "sparsity": 40,
        "hop_size": 0,
        "verbose": 2,
        "center": 2,
    }
    right = {"audio": np.ones((2, 2, 2)), "sr": 48000}
    names = [*wrong, "dimensions"]
    for number, name in enumerate(names):
        given = {**right, **{key: wrong[key] for key in list(wrong)[number:]}}
        with pytest.raises(ParameterError, match=name.split("_")[0]):
            edgel3.get_embedding(**given)


# edgel3: paths, files


@pytest.mark.parametrize("module", [edgel3, openl3])
def test_output_paths(module):
    path = "/path/to/the/test/file/audio.wav"
    assert module.get_output_path(path, "embedding.npz", "/different/dir") == (
        "/different/dir/audio_embedding.npz"
    )
    assert module.get_output_path(path, "embedding.npz") == (
        "/path/to/the/test/file/audio_embedding.npz"
    )
    assert module.get_output_path(path, ".npz") == "/path/to/the/test/file/audio.npz"


def test_edgel3_process_file(folder, tmp_path):
    out = tmp_path / "out"
    edgel3.process_file(str(folder / "chirp_44k.wav"), output_dir=str(out))
    edgel3.process_file(folder / "chirp_44k.wav", out, "suffix", model_type="sea", emb_dim=64)
    edgel3.process_file(folder / "chirp_44k.wav", model=load_model("edgel3:sea-64"), hop_size=0.5)
    for path, size in (
        (out / "chirp_44k.npz", 512),
        (out / "chirp_44k_suffix.npz", 64),
        (folder / "chirp_44k.npz", 64),
    ):
        with np.load(path, allow_pickle=False) as arrays:
            assert sorted(arrays) == ["embedding", "timestamps"]
            check(
                arrays["embedding"],
                arrays["timestamps"],
                size,
                0.5 if path.parent == folder else 0.1,
            )


def test_every_option_of_edgel3s_process_file_counts(folder, tmp_path, published):
    published.clear()
    path = folder / "chirp_1s.wav"
    options = {"center": False, "hop_size": 0.5, "retrain_type": "kd", "sparsity": 87.0}
    output = edgel3.process_file(path, tmp_path / "out", batch_size=1, verbose=False, **options)
    assert published == ["edgel3:sparse-87.0-kd"]
    with np.load(output) as arrays:
        assert len(arrays["embedding"]) == 1
    for wrong in ({"center": 3}, {"batch_size": 0}, {"retrain_type": "x"}, {"sparsity": 1}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            edgel3.process_file(path, tmp_path / "out", **wrong)
    with pytest.raises(ParameterError, match="batch_size=0"):
        edgel3.get_embedding(np.ones(8000), 8000, batch_size=0)
    dotted = edgel3.process_file(path, tmp_path / "out", ".x", model_type="sea", emb_dim=64)
    assert dotted.name == "chirp_1s.x.npz"


@pytest.mark.parametrize("process", [edgel3.process_file, openl3.process_audio_file])
def test_bad_audio_files(process, folder):
    (folder / "text.wav").write_text("not audio")
    for name, message in {
        "text.wav": r"text\.wav cannot be decoded as audio",
        "none.wav": "no such audio file",
        "empty.wav": r"empty\.wav: audio has no samples",
    }.items():
        with pytest.raises(L3PruneError, match=message) as caught:
            process(folder / name)
        assert isinstance(caught.value, ValueError)
    assert not list(folder.glob("*.npz"))


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        *(
            ({"model_type": "sea", "emb_dim": size}, f"edgel3_sea_ust_audio_emb_{size}.h5.gz")
            for size in (512, 256, 128, 64)
        ),
        *(
            (
                {"retrain_type": kind, "sparsity": sparsity},
                f"edgel3_{kind}_audio_sparsity_{sparsity}.h5.gz",
            )
            for kind in ("ft", "kd")
            for sparsity in (53.5, 63.5, 72.3, 73.5, 81.0, 87.0, 90.5, 95.45)
        ),
    ],
)
def test_published_files_of_edgel3(arguments, ending):
    name, _ = models.select(**arguments)
    assert models.find_weights(name).file == ending


def test_paths_of_models(published):
    published.clear()
    path = edgel3.models.load_embedding_model_path("sparse", 128, "kd", 53.5)
    assert path.endswith("mel256.h5")  # the stand-in's name
    assert edgel3.models.load_embedding_model_path(model_type="sea", emb_dim=64).endswith(".h5")
    assert published == ["edgel3:sparse-53.5-kd", "edgel3:sea-64"]


@pytest.mark.slow
def test_models_from_a_path(tmp_path):
    """Every argument counts: the network, the embedding's size, the front end."""
    path = tmp_path / "mine.h5"
    create_network("linear").save_weights(path)
    with h5py.File(path, "a") as file:
        # Plain Keras: layers without weights are listed too, and there are no constants.
        assert "l3prune" not in file.attrs
    for size, frontend in ((512, "kapre"), (6144, "librosa")):
        network = openl3.models.load_audio_embedding_model_from_path(
            path, "linear", size, frontend=frontend
        )
        assert network.name == "linear"
        assert network.output_shape == (None, size)
        assert len(network.input_shape) == (3 if frontend == "kapre" else 4)
        form = l3.front_end(network).form
        assert form == {"kapre": "kapre-0.3", "librosa": "librosa"}[frontend]
    create_network("vision", filters=[2] * 7 + [512]).save_weights(path)
    for size in (512, 8192):
        network = openl3.models.load_image_embedding_model_from_path(path, size)
        assert network.output_shape == (None, size)
    with pytest.raises(L3PruneError, match="holds no audio network, only vision"):
        openl3.models.load_audio_embedding_model_from_path(path, "linear", 512)


def test_versions():
    import l3prune

    assert edgel3.__version__ == openl3.__version__ == l3prune.__version__


@pytest.mark.parametrize("module", [edgel3, openl3])
def test_warnings_point_to_the_script(module):
    call = edgel3.get_embedding if module is edgel3 else openl3.get_audio_embedding
    with pytest.warns(L3PruneWarning) as caught:
        call(np.zeros(48000), 48000, hop_size=1)
    assert {Path(warning.filename).name for warning in caught} == {"test_dropin.py"}


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        *(
            ({"model_type": "sparse", "retrain_type": kind, "sparsity": sparsity}, 512)
            for kind in ("ft", "kd")
            for sparsity in SPARSITIES
        ),
        *(({"model_type": "sea", "emb_dim": size}, size) for size in (512, 256, 128, 64)),
    ],
)
def test_output_shape_of_edgel3s_models(arguments, size):
    assert edgel3.models.load_embedding_model(**arguments).output_shape[1] == size


# openl3: audio


@pytest.mark.parametrize("input_repr", ["linear", "mel128", "mel256"])
@pytest.mark.parametrize("content_type", ["env", "music"])
@pytest.mark.parametrize("embedding_size", [512, 6144])
@pytest.mark.parametrize("frontend", ["kapre", "librosa"])
def test_every_openl3_audio_network(
    recordings, published, input_repr, content_type, embedding_size, frontend
):
    published.clear()
    embedding, timestamps = openl3.get_audio_embedding(
        *recordings["chirp_mono"],
        input_repr=input_repr,
        content_type=content_type,
        embedding_size=embedding_size,
        frontend=frontend,
        center=True,
        hop_size=0.5,
        verbose=1,
    )
    check(embedding, timestamps, embedding_size, 0.5)
    assert published == [f"openl3:{input_repr}-{content_type}"]


def test_front_ends_give_different_embeddings(recordings):
    audio, rate = recordings["chirp_1s"]
    options = {"input_repr": "mel256", "embedding_size": 512, "hop_size": 1}
    kapre, librosa = (
        openl3.get_audio_embedding(audio, rate, frontend=frontend, **options)[0]
        for frontend in ("kapre", "librosa")
    )
    assert 1e-3 < np.abs(kapre - librosa).mean() < np.abs(kapre).mean()


@pytest.mark.parametrize("embedding_size", [512, 6144])
def test_a_loaded_openl3_model_gives_the_same(recordings, embedding_size):
    for frontend in ("kapre", "librosa"):
        model = openl3.models.load_audio_embedding_model(
            "mel128", "music", embedding_size, frontend=frontend
        )
        given = openl3.get_audio_embedding(
            *recordings["chirp_44k"], model=model, frontend=frontend, hop_size=0.5
        )
        chosen = openl3.get_audio_embedding(
            *recordings["chirp_44k"],
            input_repr="mel128",
            embedding_size=embedding_size,
            frontend=frontend,
            hop_size=0.5,
        )
        np.testing.assert_allclose(given[0], chosen[0], atol=1e-5)


def test_a_front_end_that_does_not_fit_the_model(recordings):
    for frontend, other, takes in (("librosa", "kapre", "spectro"), ("kapre", "librosa", "wavef")):
        model = openl3.models.load_audio_embedding_model("mel128", "env", 512, frontend)
        with pytest.raises(
            ParameterError, match=f"frontend='{other}' and a model that takes {takes}"
        ):
            openl3.get_audio_embedding(*recordings["chirp_1s"], model=model, frontend=other)


def test_openl3_defaults(recordings, published):
    published.clear()
    check(*openl3.get_audio_embedding(*recordings["chirp_1s"]), 6144)
    assert published == ["openl3:mel256-music"]


def test_lists_of_recordings(recordings):
    model = load_model("edgel3:sea-64")
    audio, rate = recordings["chirp_44k"]
    alone = openl3.get_audio_embedding(audio, rate, model=model)
    several, times = openl3.get_audio_embedding([audio, audio], rate, model=model)
    assert isinstance(several, list)
    for embedding, timestamps in zip(several, times, strict=True):
        np.testing.assert_array_equal(embedding, alone[0])
        np.testing.assert_array_equal(timestamps, alone[1])
    one, _ = openl3.get_audio_embedding([audio], [rate], model=model)
    assert len(one) == 1
    mixed, times = openl3.get_audio_embedding([audio, audio], [rate, rate // 2], model=model)
    np.testing.assert_array_equal(mixed[0], alone[0])
    assert len(mixed[1]) == 36
    other = openl3.get_audio_embedding(audio, rate // 2, model=model)
    np.testing.assert_array_equal(mixed[1], other[0])
    from_edgel3, _ = edgel3.get_embedding([audio, audio], [rate, rate // 2], model)
    np.testing.assert_array_equal(from_edgel3[1], other[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"audio": "invalid"}, "0 dimensions"),
        ({"audio": [[0.1, 0.2], [0.3]]}, "no array can be made of this list"),
        ({"hop_size": 1j}, "hop_size=1j is not a positive number"),
        ({"verbose": np.ones(2)}, "verbose=array"),
        ({"center": np.ones(2)}, "center=array"),
        ({"model": "x" * 5000}, "no such weight file: xxx"),
        ({"audio": [np.ones(48000), "invalid"]}, "0 dimensions"),
        ({"audio": np.zeros(0)}, "audio is empty"),
        ({"audio": np.ones((10, 10, 10))}, "3 dimensions"),
        ({"audio": [np.ones(48000)] * 2, "sr": [48000]}, "2 recordings and 1 sample rates"),
        ({"sr": "invalid"}, "sample rate 'invalid'"),
        ({"sr": -1}, "sample rate -1"),
        ({"model": "invalid"}, "no such weight file"),
        ({"input_repr": "invalid"}, "input_repr='invalid'; allowed: 'linear', 'mel128', 'mel256'"),
        ({"content_type": "invalid"}, "content_type='invalid'; allowed: 'music', 'env'"),
        ({"embedding_size": "invalid"}, "embedding_size='invalid'; allowed: 6144, 512"),
        ({"hop_size": 0}, "hop_size=0"),
        ({"hop_size": -1}, "hop_size=-1"),
        ({"hop_size": "invalid"}, "hop_size='invalid'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "invalid"}, "batch_size='invalid'"),
        ({"frontend": "invalid"}, "frontend='invalid'; allowed: 'kapre', 'librosa'"),
        ({"frontend": "librosa"}, "the librosa front end needs one"),
        ({"center": "invalid"}, "center='invalid'"),
        ({"verbose": -1}, "verbose=-1"),
    ],
)
def test_openl3_errors(recordings, changed, message):
    audio, rate = recordings["chirp_1s"]
    with pytest.raises(openl3.OpenL3Error, match=message) as caught:
        openl3.get_audio_embedding(**{"audio": audio, "sr": rate, **changed})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("samples", "uncentred", "centred"), [(10, 1, 1), (50, 1, 2), (76, 3, 4)])
def test_window_counts(samples, uncentred, centred):
    """openl3's own cases: windows of 50 samples, a hop of 25."""
    from l3prune.audio import count_windows

    assert count_windows(samples, 50, hop_size=0.5, center=False) == uncentred
    assert count_windows(samples, 50, hop_size=0.5, center=True) == centred


def test_preprocess_audio(recordings):
    audio, rate = recordings["chirp_mono"]
    assert openl3.preprocess_audio(audio, rate, hop_size=0.1, center=True).shape == (16, 1, 48000)
    for input_repr, maps in {
        "linear": (257, 197, 1),
        "mel128": (128, 199, 1),
        "mel256": (256, 199, 1),
    }.items():
        batch = openl3.preprocess_audio(audio, rate, input_repr=input_repr)
        assert batch.shape == (16, *maps)
        model = openl3.models.load_audio_embedding_model(input_repr, "env", 512, "librosa")
        assert model.input_shape == (None, *maps)
        expected, _ = openl3.get_audio_embedding(audio, rate, model=model, frontend="librosa")
        np.testing.assert_allclose(model.predict(batch, verbose=0), expected, rtol=1e-4, atol=1e-4)
    assert len(openl3.preprocess_audio(audio, rate, hop_size=0.5, center=False)) == 3
    with pytest.warns(openl3.OpenL3Warning, match="zero-padded"):
        openl3.preprocess_audio(audio[:1000], rate)
    with pytest.raises(ParameterError, match="center='invalid'"):
        openl3.preprocess_audio(audio, rate, center="invalid")
    both = openl3.preprocess_audio([audio, audio[:60000]], [rate, rate])
    assert [len(batch) for batch in both] == [16, 9]
    with pytest.raises(ParameterError, match="input_repr='mel64'"):
        openl3.preprocess_audio(audio, rate, input_repr="mel64")


@pytest.mark.parametrize("input_repr", ["linear", "mel128", "mel256"])
def test_front_ends_have_the_same_layers_behind_them(input_repr):
    kapre, librosa = (
        openl3.models.load_audio_embedding_model(input_repr, "music", 6144, frontend)
        for frontend in ("kapre", "librosa")
    )
    assert [layer.output_shape for layer in kapre.layers[2:]] == [
        layer.output_shape for layer in librosa.layers[1:]
    ]
    assert kapre.layers[1].output_shape == librosa.input_shape


def test_openl3_process_audio_file(folder, tmp_path):
    model = openl3.models.load_audio_embedding_model("mel128", "env", 512)
    out = tmp_path / "out"
    files = [str(folder / f"{name}.wav") for name in ("chirp_44k", "chirp_1s")]
    openl3.process_audio_file(files, output_dir=out, model=model, hop_size=0.5)
    openl3.process_audio_file(files[0], output_dir=out, suffix="x", model=model, hop_size=0.5)
    assert sorted(path.name for path in out.iterdir()) == [
        "chirp_1s.npz",
        "chirp_44k.npz",
        "chirp_44k_x.npz",
    ]
    with np.load(out / "chirp_1s.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["embedding", "timestamps"]
        check(arrays["embedding"], arrays["timestamps"], 512, 0.5)
    # Existing outputs are kept unless they are to be overwritten.
    (out / "chirp_1s.npz").write_text("mine")
    openl3.process_audio_file(files, output_dir=out, model=model, hop_size=0.5)
    assert (out / "chirp_1s.npz").read_text() == "mine"
    openl3.process_audio_file(files, output_dir=out, model=model, hop_size=0.5, overwrite=True)
    assert (out / "chirp_1s.npz").stat().st_size > 1000


def test_a_missing_file_of_a_list_shows_before_any_is_embedded(folder, tmp_path):
    files = [folder / "chirp_1s.wav", folder / "none.wav"]
    with pytest.raises(L3PruneError, match=r"no such audio file: .*none\.wav"):
        openl3.process_audio_file(files, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Both


def test_no_option_is_lost_between_the_packages(recordings):
    import l3prune

    audio, rate = recordings["chirp_8k"]
    both = l3prune.get_embedding(audio, rate, model_type="sea", emb_dim=64)
    np.testing.assert_array_equal(
        both[0], edgel3.get_embedding(audio, rate, model_type="sea", emb_dim=64)[0]
    )
    with pytest.raises(ParameterError, match="emb_dim choose EdgeL3's weights and content_type"):
        l3prune.get_embedding(audio, rate, emb_dim=64, content_type="env")
    with pytest.raises(ParameterError, match="no option size; weights are chosen by model_type"):
        l3prune.get_embedding(audio, rate, size=64)
    with pytest.raises(ParameterError, match="a model is given, and sparsity, which choose one"):
        l3prune.get_embedding(audio, rate, load_model("edgel3:sea-64"), sparsity=87.0)


def test_names_with_a_size_and_a_version(recordings, published):
    published.clear()
    assert load_model("openl3:mel256-env-6144").output_shape == (None, 6144)
    assert load_model("openl3:mel256-env").output_shape == (None, 512)
    old = load_model("openl3:mel256-env-512@0.2.0")
    assert published == ["openl3:mel256-env"] * 2 + ["openl3:mel256-env@0.2.0"]
    forms = [
        network.get_layer("log_mel").front_end.form
        for network in (load_model("openl3:mel256-env"), old)
    ]
    assert forms == ["kapre-0.3", "kapre-0.1"]
    assert load_model("openl3:mel256-env") is load_model("openl3:mel256-env")
    with pytest.raises(ParameterError, match=r"a loaded network is what it is; leave out embed"):
        load_model(old, embedding_size=6144)


@pytest.mark.parametrize("name", ["edgel3:sea-65", "openl3:mel256-env-513", "openl4:x", ":"])
def test_unknown_names(name):
    with pytest.raises(ParameterError, match="no published weights"):
        load_model(name)


def test_no_warning_for_good_audio(recordings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edgel3.get_embedding(*recordings["chirp_1s"])
