"""What others name never reaches a shell as more than a word: the script of `lacuna submit` is run through bash."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launch import slurm
from launch.cli import main
from launch.sbatch import render
from pretrain.errors import ConfigError
from tests.security import payloads
from tests.syntax import ROOT

TINY = str(ROOT / "configs" / "tiny_cpu.py")
WORDS = tuple(range(len(payloads.words(Path("x")))))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, with commands that only note what they were given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()
    for name in ("srun", "python", "scontrol", "module", "apptainer"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/bash\nprintf "%s\\0" {name} "$@" >> {tmp_path}/noted\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def dry(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert main(["submit", TINY, *more, "--gpus-per-node", "1", "--dry-run"]) == 0
    return capsys.readouterr().out


def run(script: str, desk: Path, **more: str) -> list[str]:
    """What the commands in script noted, as a job would run it."""
    env = {"SLURM_SUBMIT_DIR": str(desk), "SLURM_JOB_ID": "7", "PATH": f"{desk}/bin:/bin:/usr/bin", **more}
    path = desk / "job.sbatch"
    path.write_text(script, newline="")
    done = subprocess.run(["bash", str(path)], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    return (desk / "noted").read_bytes().decode().split("\0")


def test_a_script_that_quotes_nothing_would_run_them(desk: Path) -> None:
    ran = 0
    for word in payloads.words(desk / "canary"):
        env = {"PATH": "/bin:/usr/bin"}
        subprocess.run(["bash", "-c", f"echo {word}".replace("\0", "")], capture_output=True, env=env, cwd=desk)
        ran += (desk / "canary").exists()
        (desk / "canary").unlink(missing_ok=True)
    assert ran > 10


@pytest.mark.parametrize("number", WORDS)
def test_an_override_reaches_the_run_as_the_word_it_was(
    desk: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    word = payloads.words(desk / "canary")[number]
    noted = run(dry(capsys, f"data.train=a{word}b", "evaluation.every_steps=none"), desk)
    assert f"data.train=a{word}b".replace("\0", "") in noted and noted[0] == "srun"
    assert not (desk / "canary").exists()


@pytest.mark.parametrize("number", WORDS)
def test_folders_and_options_of_any_name_stay_what_they_are_or_are_refused(
    desk: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    word = payloads.words(desk / "canary")[number]
    for more in ([f"runs_dir=a{word}b"], [f"--partition={word}"], [f"--account={word}"], [f"--mem={word}"]):
        code = main(["submit", TINY, *more, "--gpus-per-node", "1", "--dry-run"])
        said = capsys.readouterr()
        assert code == (78 if {"\n", "\r"} & set(word) else 0), (more, said.err)
        if code == 0:
            run(said.out, desk)
        assert not (desk / "canary").exists(), more
    assert main(["submit", TINY, f"name={word}", "--gpus-per-node", "1", "--dry-run"]) == 78


def test_a_sweep_over_such_words_gives_each_run_its_own(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in payloads.words(desk / "canary") if "\0" not in word and "," not in word]
    values = ",".join(f"a{word}b" for word in words)
    script = dry(capsys, "evaluation.every_steps=none", "--sweep", f"data.train={values}")
    for number, word in enumerate(words):
        assert f"data.train=a{word}b" in run(script, desk, SLURM_ARRAY_TASK_ID=str(number))
    assert not (desk / "canary").exists()


def test_modules_of_a_site_are_words_and_its_setup_is_the_sites_own_code(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary, site = desk / "canary", desk / "site.toml"
    names = "gcc/12 cuda/12.8", f"x;touch {canary}", f"$(touch {canary})", f"`touch {canary}`"
    site.write_text("modules = [" + ", ".join(f'"{name}"' for name in names) + "]\n"
                    f"run = ['apptainer', '$(touch {canary})', '; touch {canary}']\n"
                    "gpus = '--gres=gpu:{gpus}{gpus.__class__}{0}'\nsetup = ['touch own']\n")  # fmt: skip
    script = dry(capsys, "--site", str(site))
    assert "#SBATCH --gres=gpu:1{gpus.__class__}{0}\n" in script, "nothing but {gpus} is filled in"
    noted = run(script, desk)
    assert noted[:4] == ["module", "load", "gcc/12", "cuda/12.8"] and f"; touch {canary}" in noted
    assert not canary.exists()
    assert (desk / "own").exists(), "a site file's setup runs, as docs/security.md says"


def test_trust_reaches_the_job(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--trust" in run(dry(capsys, "--trust"), desk)
    (desk / "noted").unlink()
    assert "--trust" not in run(dry(capsys), desk)


@pytest.mark.parametrize(
    "text", ["1;2", "$(id)", "1 2", "1\n", "1\n2", "-1", "1_2_3", "\u0661", "1_[1-3]", "--user=root"]
)
def test_what_is_no_job_number_never_reaches_slurm(desk: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (desk / "bin" / "scancel").write_text(f"#!/bin/sh\ntouch {desk}/canary\n")
    (desk / "bin" / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{desk}/bin:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match="is no job number"):
        slurm.cancel(text)
    assert main(["submit", TINY, f"--after={text}", "--dry-run", "--gpus-per-node", "1"]) == 78
    assert not (desk / "canary").exists()
    slurm.cancel("12_3")
    assert (desk / "canary").exists(), "a job's number does"


def test_an_option_of_two_lines_is_refused() -> None:
    with pytest.raises(ConfigError, match="line break"):
        render({"comment": "x\ntouch canary"}, [])
    with pytest.raises(ConfigError, match="line break"):
        render({"x\ntouch canary": ""}, [])
