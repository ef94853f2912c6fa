"""A signal only sets a flag; wall time sets it in good time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from launch.preempt import StopFlag


def test_every_preemption_signal_sets_the_flag_and_nothing_else() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        flag = StopFlag()
        flag.listen()
        assert not flag.wanted()
        os.kill(os.getpid(), number)
        assert flag.wanted() and number.name in (flag.reason or "")
        for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)


def test_wall_time_asks_for_a_stop_before_it_ends() -> None:
    assert StopFlag(deadline_s=0.0, margin_s=120.0).wanted()
    for seconds in (60.0, 3600.0):  # a job of a minute trains for three quarters of it
        assert not StopFlag(deadline_s=seconds, margin_s=120.0).wanted()


def test_wall_time_that_is_nearly_over_asks_for_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    for seconds, after in ((3600.0, 3480.0), (60.0, 45.0)):
        flag = StopFlag(deadline_s=seconds, margin_s=120.0)
        monkeypatch.setattr(time, "monotonic", lambda at=now + after - 1: at)
        assert not flag.wanted()
        monkeypatch.setattr(time, "monotonic", lambda at=now + after + 1: at)
        assert flag.wanted() and "wall time" in (flag.reason or "")
        monkeypatch.undo()


def test_a_second_interrupt_ends_the_process() -> None:
    program = (
        "import os, signal; from launch.preempt import StopFlag; f = StopFlag(); f.listen();"
        "os.kill(os.getpid(), signal.SIGINT); print(f.wanted(), flush=True); os.kill(os.getpid(), signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "True" and "KeyboardInterrupt" in done.stderr


def test_a_process_that_is_leaving_keeps_its_exit_code() -> None:
    program = (
        "import os, signal, sys; from launch.preempt import StopFlag; f = StopFlag(); f.listen(); f.ignore();"
        "sys.last = type('Late', (), {'__del__': lambda _, kill=os.kill, to=os.getpid(): kill(to, 15)})();"
        "sys.exit(80)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 80
