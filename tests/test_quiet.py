import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

FAKE = """
import os, sys
os.write(2, b"a notice\\n")
{then}
"""


def run(code, folder=ROOT, **environment):
    inherited = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=inherited | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"} | environment,
    )


LOAD = "from l3prune.quiet import load_tensorflow; load_tensorflow(); "


def fake(folder, then):
    """A stand-in for TensorFlow that writes a notice below Python, and then does something."""
    (folder / "tensorflow.py").write_text(FAKE.format(then=then))
    (folder / "tf_keras.py").write_text("")
    return folder


DEVICES = """
class config:
    def list_physical_devices(): os.write(2, b"no device\\n")
"""


def test_tensorflow_starts_without_a_word():
    ended = run(LOAD + "import tensorflow as tf; print(float(tf.constant(1.0) + 1))")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "2.0\n", "")


def test_stderr_is_back_afterwards(tmp_path):
    code = LOAD + "import os, sys; os.write(2, b'low '); print('high', file=sys.stderr)"
    ended = run(code, fake(tmp_path, DEVICES))
    assert (ended.returncode, ended.stderr) == (0, "low high\n")


def test_lines_from_before_are_kept(tmp_path):
    code = "import sys; sys.stderr.write('mine '); " + LOAD + "sys.stderr.write('after')"
    assert run(code, fake(tmp_path, DEVICES)).stderr == "mine after"


def test_a_failing_import_shows_everything(tmp_path):
    ended = run(LOAD, fake(tmp_path, "raise ImportError('no such library')"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("a notice\nTraceback ")
    assert ended.stderr.endswith("ImportError: no such library\n")


def test_a_user_can_see_the_notices(tmp_path):
    folder = fake(tmp_path, DEVICES)
    assert run(LOAD + "import tensorflow", folder, TF_CPP_MIN_LOG_LEVEL="0").stderr == "a notice\n"
    assert run(LOAD + "import tensorflow", folder, TF_CPP_MIN_LOG_LEVEL="3").stderr == ""


def test_a_process_without_stderr(tmp_path):
    code = f"import os; os.close(2); {LOAD}print('still here')"
    ended = run(code, fake(tmp_path, DEVICES))
    assert (ended.returncode, ended.stdout) == (0, "still here\n")
