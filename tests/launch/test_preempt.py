"""A signal only sets a flag; wall time sets it in good time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

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
    assert StopFlag(deadline_s=60.0, margin_s=120.0).wanted()
    assert not StopFlag(deadline_s=3600.0, margin_s=120.0).wanted()


def test_a_second_interrupt_ends_the_process() -> None:
    program = (
        "import os, signal; from launch.preempt import StopFlag; f = StopFlag(); f.listen();"
        "os.kill(os.getpid(), signal.SIGINT); print(f.wanted(), flush=True); os.kill(os.getpid(), signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "True" and "KeyboardInterrupt" in done.stderr
