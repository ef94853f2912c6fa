"""W&B follows the line files with the real client, offline: no row twice, none lost for good, and never in the way."""

import glob
import http.server
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from pretrain.tracking.access import WandbAccess
from pretrain.tracking.lines import read_lines
from pretrain.tracking.metrics import Tracker
from pretrain.tracking.settings import TrackingConfig
from pretrain.tracking.wandb_log import read_history, read_records
from pretrain.tracking.wandb_mirror import choose_mode
from tests.tracking.dead_wandb import wandb_campaign

CONFIG = {"name": "run", "data": {"batch_size": 4}, "seed": 7}
PATIENCE_S = 60


def records(first, last):
    return [{"step": s, "loss": 1 / s, "loss_hex": "3f80", "digest": "ab", "lr": 0.1} for s in range(first, last + 1)]


def open_tracker(run_dir, warnings=None, **settings):
    settings = {"access": WandbAccess(), "warn": (warnings if warnings is not None else []).append, **settings}
    return Tracker(run_dir, CONFIG, TrackingConfig(), **settings)


def logs(run_dir):
    return sorted(path for path in glob.glob(f"{run_dir}/wandb/offline-run-*/*.wandb"))


def rows(run_dir):
    return [row for path in logs(run_dir) for row in read_history(path)]


def wait_for(condition):
    for _ in range(PATIENCE_S * 20):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("waited in vain")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished")
    run = open_tracker(run_dir)
    run.evaluation({"step": 0, "knn": 0.1, "weights": "model"})
    run.log(records(1, 40))
    picture = run_dir / "panels" / "step-0000020.png"
    picture.parent.mkdir()
    Image.new("RGB", (8, 8)).save(picture)
    run.panel(20, picture)
    run.evaluation({"step": 20, "knn": 0.3})
    run.log(records(41, 60))
    run.close()
    return run_dir, run.wandb_id


def test_every_step_arrives_once_in_order_with_its_numbers(finished):
    steps = [row for row in rows(finished[0]) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 61)) == [row["_step"] for row in steps]
    assert [row["loss"] for row in steps] == [1 / step for step in range(1, 61)]
    assert not {"loss_hex", "digest"} & set(steps[0])


def test_evaluations_and_pictures_arrive_at_their_own_steps(finished):
    evaluations = [(row["eval/step"], row["eval/knn"]) for row in rows(finished[0]) if "eval/step" in row]
    assert evaluations == [(0, 0.1), (20, 0.3)]
    pictures = [row for row in rows(finished[0]) if "panels/step" in row]
    assert [row["panels/step"] for row in pictures] == [20]
    assert pictures[0]["panels/reconstruction._type"] == "image-file"


def test_pictures_and_evaluations_never_push_wandb_past_steps_that_are_still_to_come(tmp_path):
    run = open_tracker(tmp_path)
    picture = tmp_path / "panels" / "p.png"
    picture.parent.mkdir()
    Image.new("RGB", (8, 8)).save(picture)
    run.log(records(1, 10))
    for step in (0, 15, 25, 28):
        run.panel(step, picture)
        run.evaluation({"step": step, "knn": step / 100})
    wait_for(lambda: (tmp_path / "wandb" / "status.json").exists())
    run.log(records(11, 30))
    wait_for(lambda: json.loads((tmp_path / "wandb" / "status.json").read_text())["sent"] == 30)
    run.panel(20, picture)
    run.panel(22, picture)
    run.close()
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == list(range(1, 31))
    assert sorted(row["eval/step"] for row in rows(tmp_path) if "eval/step" in row) == [0, 15, 25, 28]
    assert sorted(row["panels/step"] for row in rows(tmp_path) if "panels/step" in row) == [0, 15, 20, 22, 25, 28]


def test_wandb_gets_the_config_the_stable_id_and_axes_but_no_code(finished):
    run_dir, run_id = finished
    found = [record for path in logs(run_dir) for record in read_records(path)]
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    sent = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: sent[key] for key in CONFIG} == CONFIG
    assert (run.run_id, run.display_name, run.project) == (run_id, "run", "lacuna")
    axes = {record.metric.glob_name: record.metric.step_metric for record in found if record.HasField("metric")}
    assert axes["*"] == "step" and axes["eval/*"] == "eval/step" and axes["panels/*"] == "panels/step"
    names = {path.name for path in Path(run_dir, "wandb").rglob("*") if path.is_file()}
    assert not {name for name in names if name.endswith((".py", ".patch")) or name == "requirements.txt"}


def test_a_mirror_killed_in_mid_run_is_noticed_once_and_made_good_without_duplicates(tmp_path):
    warnings = []
    run = open_tracker(tmp_path, warnings)
    run.log(records(1, 30))
    wait_for(lambda: (tmp_path / "wandb" / "status.json").exists())
    os.kill(run._mirror.pid, signal.SIGKILL)
    os.waitid(os.P_PID, run._mirror.pid, os.WEXITED | os.WNOWAIT)
    for first in range(31, 101, 10):
        run.log(records(first, first + 9))
    assert len(warnings) == 1 and "training goes on" in warnings[0]
    run.close()
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 100
    run = open_tracker(tmp_path, resume_step=90)  # from a checkpoint that is older than what W&B may have
    run.log(records(91, 110))
    run.close()
    assert sorted(row["step"] for row in rows(tmp_path) if "loss" in row) == list(range(1, 111))
    assert len(logs(tmp_path)) == 2


def test_a_resumed_run_sends_only_what_is_new_under_the_same_id(tmp_path):
    run = open_tracker(tmp_path)
    run.log(records(1, 50))
    run.evaluation({"step": 50, "knn": 0.4})
    run.close()
    again = open_tracker(tmp_path, resume_step=40)
    again.log(records(41, 70))
    again.evaluation({"step": 50, "knn": 0.4})
    again.close()
    assert again.wandb_id == run.wandb_id
    steps = [row["step"] for path in logs(tmp_path) for row in read_history(path) if "loss" in row]
    assert steps == list(range(1, 71))
    assert len([row for row in rows(tmp_path) if "eval/step" in row]) == 1


class BlackHole:
    """A server on loopback that takes connections and never answers."""

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.connections = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self):
        while True:
            try:
                self.connections.append(self.socket.accept()[0])
            except OSError:
                return

    def __exit__(self, *error):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for connection in self.connections:
            connection.close()


@pytest.mark.parametrize("server", ["black hole", "refused"])
def test_a_server_that_does_not_work_means_an_offline_run_and_all_rows(tmp_path, monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with BlackHole() as hole:
        port = hole.socket.getsockname()[1] if server == "black hole" else 1
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        run = open_tracker(tmp_path, access=WandbAccess(has_key=True, base_url=url))
        run.log(records(1, 30))
        wait_for(lambda: (tmp_path / "wandb" / "status.json").exists())
        run.close()
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 31))


class Broken(http.server.BaseHTTPRequestHandler):
    """Speaks HTTP well enough to pass the probe and is then of no use."""

    def do_GET(self):
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


@pytest.mark.slow
def test_a_server_that_only_answers_errors_means_an_offline_run_and_all_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run = open_tracker(
            tmp_path, access=WandbAccess(has_key=True, base_url=f"http://127.0.0.1:{server.server_port}")
        )
        run.log(records(1, 30))
        for _ in range(3):
            if not (tmp_path / "wandb" / "status.json").exists():
                time.sleep(20)
        run.close()
        server.shutdown()
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 31))


@pytest.mark.slow
def test_a_run_ends_as_without_wandb_whatever_trouble_that_is_in():
    """Refused, mute, killed, answering errors: real runs on two ranks."""
    assert wandb_campaign(4)["failures"] == []


def test_the_key_is_in_no_file_of_the_run(tmp_path, monkeypatch):
    key = "5ec7e7" * 6 + "abcd"
    monkeypatch.setenv("WANDB_API_KEY", key)
    run = open_tracker(tmp_path, access=WandbAccess(has_key=True, mode="offline"))
    run.log(records(1, 3))
    run.close()
    assert rows(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def test_a_run_directory_where_wandb_cannot_write_trains_on(tmp_path):
    (tmp_path / "wandb").write_text("in the way")
    warnings = []
    run = open_tracker(tmp_path, warnings)
    run.log(records(1, 3))
    run.close()
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 3
    assert "could not be started" in warnings[0]


def test_a_mirror_ends_by_itself_when_training_is_killed(tmp_path):
    pid = os.fork()
    if pid == 0:
        run = open_tracker(tmp_path)
        run.log(records(1, 20))
        (tmp_path / "mirror").write_text(str(run._mirror.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    mirror = int((tmp_path / "mirror").read_text())
    wait_for(lambda: not Path(f"/proc/{mirror}").exists())
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 21))


@pytest.mark.parametrize(
    ("wanted", "access", "mode"),
    [
        ("auto", WandbAccess(), "offline"),
        ("auto", WandbAccess(has_key=True), "probe"),
        ("auto", WandbAccess(has_key=True, mode="offline"), "offline"),
        ("auto", WandbAccess(has_key=True, mode="disabled"), None),
        ("online", WandbAccess(has_key=True, mode="offline"), "probe"),
        ("online", WandbAccess(), "offline"),
        ("offline", WandbAccess(has_key=True), "offline"),
        ("off", WandbAccess(has_key=True), None),
    ],
)
def test_the_config_decides_first_then_the_environment_then_the_network(wanted, access, mode):
    assert choose_mode(wanted, access) == mode
