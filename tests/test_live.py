"""python -m l3prune.live, and its page in a browser."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from l3prune.labels import Labels, Tracker
from l3prune.live import main as live
from l3prune.networks import set_labels
from l3prune.streaming import FileSource, Listener
from l3prune.web import Page
from l3prune.weights import save_network
from tests.browser import browser
from tests.cnn14_networks import shaken, small
from tests.commands import words
from tests.conftest import chirp

NAMES = ("Rain", "Dog", "Sea waves", "Livestock, farm animals, working animals", "Clock")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "small.h5"
    save_network(set_labels(shaken(small()), NAMES), path)
    return path


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "sweep.wav"
    soundfile.write(path, chirp(1.5, 16000), 16000)
    return path


SUMMARY = r"(\d+) windows of 2 s in [\d.]+ s, [\d.]+ a second; \d+ ms each, real-time factor [\d.]+"


def test_a_fast_file_line_by_line(net, recording, capsys):
    assert live(words(recording, "--model", net, "--fast", "--top-k", 2, "--deny", "Dog")) == 0
    captured = capsys.readouterr()
    *lines, summary = captured.out.splitlines()
    assert captured.err == ""
    assert re.fullmatch(SUMMARY, summary).group(1) == "3"
    # A line may be left out while another is printed; the last one is there.
    assert 1 <= len(lines) <= 3
    for line in lines:
        name, scores = re.fullmatch(r"(sweep.wav  [\d.]+ s)  (.*)", line).groups()
        pairs = [part.rsplit(" ", 1) for part in re.split(r"(?<=\d), ", scores)]
        assert len(pairs) == 2
        assert {label for label, _ in pairs} <= set(NAMES) - {"Dog"}
        assert float(pairs[0][1]) >= float(pairs[1][1])
    assert name == "sweep.wav  1.5 s"


def test_a_terminal_is_drawn_over(net, recording, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 24)))
    assert live(words(recording, "--model", net, "--top-k", 3)) == 0
    drawings = capsys.readouterr().out.split("\x1b[J")[1:]
    assert len(drawings) >= 2
    for number, drawing in enumerate(drawings):
        title, *rows = re.sub(r"\x1b\[4F$", "", drawing).splitlines()[:4]
        assert title.startswith("sweep.wav  ")
        assert [row.split()[0] for row in rows] == ["1", "2", "3"]
        assert max(map(len, rows)) <= 40
        if number < len(drawings) - 1:
            assert drawing.endswith("\x1b[4F"), "as many lines up as there are"
    assert re.fullmatch(SUMMARY, drawings[-1].splitlines()[-1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["/nowhere/a.wav"], "no such audio file: /nowhere/a.wav"),
        (["SOUND", "--device", "1"], "--device is for the microphone"),
        (["--fast"], "--fast is for FILE, and none is given"),
        (["--loop"], "--loop is for FILE"),
        (["SOUND", "--port", "80"], "--port is for --web"),
        (["SOUND", "--web", "--port", "99999"], "--port 99999 is not in 0 … 65535"),
        (["SOUND", "--top-k", "0"], "--top-k=0 is not a whole number from 1 on"),
        (["SOUND", "--allow", "Dogg"], "no label 'Dogg' among 5; close: 'Dog'"),
        (["SOUND", "--deny", *NAMES], "no class is left"),
        (["SOUND", "--labels", "/nowhere/l.csv"], "no such file of labels"),
        (["SOUND", "--activation", "relu"], "activation='relu'"),
        (["SOUND", "--model", "/nowhere/n.h5"], "no such weight file"),
    ],
)
def test_wrong_arguments(net, recording, capsys, line, message):
    line = [str(recording) if word == "SOUND" else word for word in line]
    assert live(["--model", str(net), *line]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def start(*line):
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-m", "l3prune.live", *words(*line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"},
        # Shells start what runs in their background with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
def test_ctrl_c_ends_a_loop_with_a_summary(net, recording):
    process = start(recording, "--model", net, "--loop")
    assert process.stdout.readline().startswith("sweep.wav  ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert re.fullmatch(SUMMARY, out.splitlines()[-1])
    assert (process.returncode, err) == (0, "")


class Scores:
    """What a page shows in these tests: scores that the test sets."""

    def __init__(self):
        self.values = np.array([0.25, 0.893, 0.5, 0.125, 0.0])

    def __call__(self, window):
        time.sleep(0.02)
        return self.values


@pytest.fixture
def page(recording):
    scores = Scores()
    listener = Listener(FileSource(recording, loop=True), 16000, 32000, scores)
    with Page(listener, Tracker(Labels(NAMES)), 3, 0) as page:
        page.scores = scores
        threading.Thread(target=page.serve_forever, daemon=True).start()
        yield page
        listener.stop()
        page.shutdown()


def ask(page, method, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer, connection


def test_the_page_needs_nothing_from_elsewhere(page):
    for path in ("/", "/live.css", "/live.js"):
        answer, _ = ask(page, "GET", path)
        text = answer.read().decode()
        assert answer.status == 200
        policy = answer.headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'self'", "frame-ancestors 'none'"} <= {*policy}
        assert not re.search(r"https?://|//\w+\.\w", text)
    assert ask(page, "GET", "/other")[0].status == 404
    assert ask(page, "GET", "/../web.py")[0].status == 404
    assert ask(page, "POST", "/other")[0].status == 404
    assert ask(page, "PUT", "/start")[0].status == 501


def test_the_page_listens_to_this_machine_only(page):
    assert page.socket.getsockname()[0] == "127.0.0.1"
    here = f"127.0.0.1:{page.server_port}"
    for headers in (
        {"Host": "evil.example"},
        {"Host": "127.0.0.1:1"},
        {"Host": here, "Origin": "http://evil.example"},
        {"Host": here, "Origin": "null"},
    ):
        for method, path in (("GET", "/"), ("GET", "/events"), ("POST", "/start")):
            assert ask(page, method, path, **headers)[0].status == 403
    assert page.listener.wait(-1)[1].state == "stopped"
    assert ask(page, "POST", "/start", Host=here, Origin=f"http://{here}")[0].status == 200
    assert page.listener.wait(-1)[1].state == "listening"


def test_events_follow_listening(page):
    answer, connection = ask(page, "GET", "/events")
    assert answer.headers["Content-Type"] == "text/event-stream"

    def state():
        line = answer.readline().decode()
        assert answer.readline() == b"\n"
        return json.loads(line.removeprefix("data: "))

    first = state()
    assert (first["state"], first["sounds"], first["source"]) == ("stopped", [], "sweep.wav")
    assert (first["top_k"], first["most"]) == (3, 5)
    ask(page, "POST", "/start")
    while not (heard := state())["sounds"]:
        assert heard["state"] == "listening"
    assert [each["name"] for each in heard["sounds"]] == [NAMES[n] for n in (1, 2, 0, 3, 4)]
    assert [each["score"] for each in heard["sounds"]] == [0.893, 0.5, 0.25, 0.125, 0]
    ask(page, "POST", "/stop")
    while (heard := state())["state"] != "stopped":
        pass
    assert heard["windows_per_second"] > 0
    connection.close()


def test_a_port_that_is_taken(page, net, recording, capsys):
    line = words(recording, "--model", net, "--web", "--port", page.server_port)
    assert live(line) == 2
    assert f"error: port {page.server_port} cannot be used" in capsys.readouterr().err


def wait_until(happens, seconds=20):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def rows(driver):
    """Rank, name, score, and what the bar says and shows."""
    return driver.execute_script(
        """return [...document.querySelectorAll("#sounds li")].map((row) => {
             const bar = row.querySelector("[role=meter]");
             return [row.querySelector(".rank").textContent, row.querySelector(".name").textContent,
               row.querySelector(".score").textContent, bar.getAttribute("aria-valuenow"),
               bar.getAttribute("aria-label"),
               bar.firstChild.getBoundingClientRect().width / bar.getBoundingClientRect().width];
           });"""
    )


def text(driver, name):
    return driver.find_element("id", name).text


def test_the_page_in_a_browser(page):
    with browser() as driver:
        driver.get(page.address)
        wait_until(lambda: text(driver, "status") == "Stopped.")
        assert text(driver, "source") == "sweep.wav"
        assert rows(driver) == []
        toggle = driver.find_element("id", "toggle")
        assert toggle.text == "Start"
        toggle.click()
        wait_until(lambda: rows(driver))
        assert text(driver, "status") == "Listening …"
        assert toggle.text == "Stop"
        for row, name, score in zip(
            rows(driver), ("Dog", "Sea waves", "Rain"), (0.893, 0.5, 0.25), strict=True
        ):
            assert row[1:5] == [name, f"{score:.3f}", f"{score:.3f}", name]
            assert row[5] == pytest.approx(score, abs=0.01)
        # Another order, and more of it.
        page.scores.values = np.array([0.1, 0.2, 0.3, 0.4, 1.0])
        field = driver.find_element("id", "top-k")
        field.clear()
        field.send_keys("4")
        wait_until(lambda: [row[1] for row in rows(driver)][:1] == ["Clock"])
        assert [row[0] for row in rows(driver)] == ["1", "2", "3", "4"]
        assert rows(driver)[0][5] == pytest.approx(1, abs=0.01)
        field.clear()
        field.send_keys("99")  # more than there are
        wait_until(lambda: len(rows(driver)) == 5)
        assert float(text(driver, "speed")) > 0
        toggle.click()
        wait_until(lambda: text(driver, "status") == "Stopped.")
        assert len(rows(driver)) == 5, "what was heard last stays"
        assert driver.get_log("browser") == []


def test_the_page_on_a_phone(page):
    with browser(360, 740) as driver:
        driver.get(page.address)
        wait_until(lambda: text(driver, "status") == "Stopped.")
        driver.find_element("id", "toggle").click()
        page.scores.values = np.array([0.1, 0.2, 0.3, 0.9, 0.5])
        wait_until(lambda: rows(driver) and rows(driver)[0][1] == NAMES[3])
        width, button, bar = driver.execute_script(
            """return [document.documentElement.scrollWidth,
                 document.getElementById("toggle").getBoundingClientRect().height,
                 document.querySelector(".bar").getBoundingClientRect().width];"""
        )
        assert width <= 360, "nothing to scroll sideways for"
        assert button >= 44, "large enough for a thumb"
        assert bar >= 200


def test_a_page_tells_what_went_wrong(page):
    page.listener.source = FileSource("/nowhere/a.wav")
    with browser() as driver:
        driver.get(page.address)
        wait_until(lambda: text(driver, "status") == "Stopped.")
        assert not driver.find_element("id", "error").is_displayed()
        driver.find_element("id", "toggle").click()
        wait_until(lambda: text(driver, "status") == "Listening failed.")
        assert text(driver, "error") == "no such audio file: /nowhere/a.wav"
        assert text(driver, "toggle") == "Start"
        page.shutdown()
        page.server_close()


@pytest.mark.slow
def test_the_command_with_a_page_and_a_file(net, recording):
    process = start(recording, "--model", net, "--web", "--port", 0, "--top-k", 4)
    try:
        address = process.stdout.readline().split()[0]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        with browser() as driver:
            driver.get(address)
            wait_until(lambda: text(driver, "status") == "Stopped.")
            driver.find_element("id", "toggle").click()
            wait_until(lambda: text(driver, "status") == "The recording has ended.")
            shown = rows(driver)
            assert {row[1] for row in shown} <= set(NAMES)
            assert [row[2] for row in shown] == sorted((row[2] for row in shown), reverse=True)
            assert len(shown) == 4
            assert text(driver, "seconds") == "1.5 s"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            assert re.fullmatch(SUMMARY, out.splitlines()[-1])
            assert (process.returncode, err) == (0, "")
            wait_until(lambda: text(driver, "status").startswith("No connection"))
    finally:
        process.kill()
