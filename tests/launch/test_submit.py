"""The batch script that `lacuna submit` writes, and the site file; what SLURM then does is tests/test_slurm.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launch import slurm
from launch.cli import main
from launch.sbatch import render, template
from launch.site import read_site
from pretrain.errors import ConfigError
from tests.syntax import ROOT

TINY = str(ROOT / "configs" / "tiny_cpu.py")
CLASSES = str(ROOT / "configs" / "finetune_cifar.py")
SHOWN = 'srun() { printf "%s " "$@"; }; scontrol() { :; }\n'


def options_of(script: str) -> dict[str, str]:
    """#SBATCH lines as name -> value."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return dict(line.partition("=")[::2] for line in lines)


def bash(script: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of script, submitted in folder."""
    env = {"SLURM_SUBMIT_DIR": str(folder), "PATH": "/bin:/usr/bin", **more}
    return subprocess.run(["bash", "-c", script], text=True, capture_output=True, env=env)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def dry(capsys: pytest.CaptureFixture[str], *words: str, config: str = TINY) -> str:
    assert main(["submit", config, *words, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_the_template_asks_for_what_a_run_lives_on_and_starts_one_task_a_gpu() -> None:
    text = template()
    assert text == (ROOT / "slurm" / "train.sbatch").read_text()
    options = options_of(text)
    assert {"requeue", "open-mode", "signal", "time", "ntasks-per-node", "gpus-per-task"} <= options.keys()
    assert options["signal"].startswith("USR2@") and options["open-mode"] == "append"
    assert "torchrun" not in text and "srun --kill-on-bad-exit=1" in text  # torchrun forwards no USR2


def test_a_script_has_what_was_asked_for_and_shells_read_it(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = dry(capsys, "name=first", "data.train=it's/*.tar", "evaluation.every_steps=none",
                 "--nodes", "2", "--gpus-per-node", "4", "--time", "2-12:00:00",
                 "--partition", "gpu", "--after", "77", "--notice", "60", "--cpus-per-task", "3")  # fmt: skip
    options = options_of(script)
    assert (options["nodes"], options["ntasks-per-node"], options["gpus-per-task"]) == ("2", "4", "1")
    assert (options["time"], options["partition"], options["signal"]) == ("2-12:00:00", "gpu", "USR2@60")
    assert (options["dependency"], options["cpus-per-task"], options["job-name"]) == ("afterok:77", "3", "first")
    assert "set -- " in script and """'data.train=it'"'"'s/*.tar'""" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0
    assert not (desk / "runs").exists()  # a dry run touches nothing


@pytest.mark.parametrize(
    ("words", "starts"),
    [
        ([], "train HOME/config.py"),
        (["--finetune", "--from-scratch"], "finetune --from-scratch HOME/config.py"),
        (["--trust", "--finetune", "init_from=pre"], "finetune --trust HOME/config.py init_from=pre"),
    ],
)
def test_what_srun_starts_is_the_verb_that_was_asked_for(
    desk: Path, capsys: pytest.CaptureFixture[str], words: list[str], starts: str
) -> None:
    (desk / "pre").mkdir()
    settings = ["--gpus-per-node", "0", *words, "name=tuned", "data.val=val"]
    for site, run in (("", "python -m launch"), ('run = ["a b", "lacuna"]', "a b lacuna")):
        (desk / "site.toml").write_text(site)
        script = dry(capsys, *settings, "--site", "site.toml", config=CLASSES)
        done = bash(SHOWN + script, desk, SLURM_JOB_ID="5")
        wanted = f"--kill-on-bad-exit=1 --wait=0 {run} {starts} name=tuned data.val=val "
        assert done.returncode == 0, done.stderr
        assert done.stdout == wanted.replace("HOME", "runs/tuned/submitted/0001")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([CLASSES, "--finetune", "data.val=val"], "init_from=none: fine-tuning begins with pretrained weights"),
        ([TINY, "--finetune", "--from-scratch"], "learns no classes"),
        ([CLASSES, "--from-scratch", "data.val=val"], "give --finetune with it, or leave it out"),
    ],
)
def test_what_is_no_fine_tuning_is_not_submitted_as_one(
    desk: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["submit", *words, "--gpus-per-node", "0"]) == 78
    assert said in capsys.readouterr().err and not (desk / "runs").exists()


def test_a_sweep_gives_every_element_of_the_array_its_own_settings(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = dry(capsys, "--gpus-per-node", "0", "--sweep", "seed=0,1", "--sweep", "optim.base_lr=1e-3,2e-3")
    assert options_of(script)["array"] == "0-3" and "gpus-per-task" not in options_of(script)
    told = script.partition("crashes=")[0]
    for number, words in enumerate(["seed=0 optim.base_lr=1e-3", "seed=0 optim.base_lr=2e-3",
                                    "seed=1 optim.base_lr=1e-3", "seed=1 optim.base_lr=2e-3"]):  # fmt: skip
        done = bash(told + 'printf "%s " "$@"', desk, SLURM_ARRAY_TASK_ID=str(number))
        assert f"{words} name=tiny_cpu-{number} " in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("code", "crashes_before", "ends", "requeued"),
    [(0, 0, 0, False), (75, 3, 75, True), (137, 0, 75, True), (1, 9, 1, False), (79, 2, 79, False), (78, 0, 78, False),
     (76, 0, 76, False), (80, 0, 80, False), (127, 0, 127, False)],
)  # fmt: skip
def test_what_an_end_means_to_the_script(
    tmp_path: Path, code: int, crashes_before: int, ends: int, requeued: bool
) -> None:
    crashes = tmp_path / "lacuna-5.crashes"
    if crashes_before:
        crashes.write_text("crash\n" * crashes_before)
    commands = f'srun() {{ return {code}; }}; scontrol() {{ echo "asked $*"; }}\n'
    done = bash(commands + template(), tmp_path, SLURM_JOB_ID="5")
    assert done.returncode == ends and ("asked requeue 5" in done.stdout) == requeued
    assert crashes.exists() == (requeued and code != 75)  # what is over leaves nothing, and a saved run starts anew


def test_a_site_file_speaks_for_the_cluster_and_the_command_line_goes_first(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "slurm").mkdir()
    (desk / "slurm" / "site.toml").write_text(
        'partition = "gpu"\naccount = "vision"\ngpus = "--gres=gpu:{gpus}"\ncpus_per_task = 7\nmodules = ["cuda/12"]\n'
        'setup = ["export A=1"]\nrun = ["apptainer", "exec", "a b.sif", "lacuna"]\n'
        'sbatch = ["--exclude=n13"]\n'
    )
    script = dry(capsys, "--gpus-per-node", "2", "--partition", "long")
    options = options_of(script)
    assert (options["partition"], options["account"], options["cpus-per-task"]) == ("long", "vision", "7")
    assert options["gres"] == "gpu:2" and "gpus-per-task" not in options and options["exclude"] == "n13"
    assert "module load cuda/12\nexport A=1\n" in script and "run=(apptainer exec 'a b.sif' lacuna)" in script
    example = read_site(ROOT / "slurm" / "site.example.toml")
    assert example.partition == "gpu" and example.sbatch == ("--exclude=node13",)


@pytest.mark.parametrize(
    ("text", "said"),
    [('partion = "gpu"', "did you mean partition"), ("cpus_per_task = true", "must be a whole number"),
     ('modules = "cuda"', "must be a list of texts"), ("partition = 3", "must be a text"), ("a =", "cannot be read"),
     ('setup = ["a\\nb"]', "line break")],
)  # fmt: skip
def test_a_site_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match=said):
        read_site(path)


def test_without_slurm_the_refusal_says_so(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["submit", TINY, "--gpus-per-node", "1"]) == 78
    assert "there is no sbatch here" in capsys.readouterr().err
    assert slurm.states() == {}


def test_only_job_numbers_reach_slurm() -> None:
    assert slurm.is_job("12") and slurm.is_job("12_3")
    for text in ("", "12\n", "12 13", "-u root", "12_", "a", "1;2", "12_[1-3]"):
        assert not slurm.is_job(text)
        with pytest.raises(ConfigError, match="is no job number"):
            slurm.cancel(text)


def test_nothing_of_the_template_is_lost_where_it_is_filled_in() -> None:
    body = template().partition("\n\n")[2]
    script = render({"nodes": "3"}, ["echo here"])
    assert script.endswith(body.replace("by lacuna submit\n", "by lacuna submit\necho here\n"))
    assert options_of(script) == options_of(template()) | {"nodes": "3"}
