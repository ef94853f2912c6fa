"""The live line in a real terminal (a pty), and the plain lines where there is none."""

import contextlib
import fcntl
import io
import os
import pty
import select
import struct
import termios

import pytest

from pretrain.tracking.live import LiveLine, StatusLine, amount, duration
from pretrain.tracking.progress import Progress


class Terminal:
    """A pty of a given width whose output can be read back."""

    def __init__(self, columns):
        self.master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self.resize(columns)

    def resize(self, columns):
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read(self):
        self.stream.flush()
        data = b""
        while select.select([self.master], [], [], 0.2)[0]:  # the kernel hands it over a moment later
            data += os.read(self.master, 1 << 16)
        return data.decode()

    def close(self):
        self.stream.close()
        os.close(self.master)


@pytest.fixture
def terminal():
    terminal = Terminal(100)
    yield terminal
    terminal.close()


def record(step):
    return {"step": step, "loss": 0.4312, "images_per_s": 812.4, "data_wait": 0.031}


def test_a_terminal_shows_one_line_that_says_step_loss_speed_and_wait(terminal):
    line = LiveLine(1000, terminal.stream)
    line.update(record(20))
    text = terminal.read()
    assert "\n" not in text
    for part in ("step   20/1000", "loss 0.4312", "812 images/s", "data wait 3%"):
        assert part in text
    line.update(record(1000))
    assert terminal.read().startswith("\r\x1b[J")
    line.close()
    assert terminal.read() == "\r\n"


def test_a_line_never_fills_the_width_and_loses_whole_parts_only(terminal):
    terminal.resize(40)
    line = LiveLine(1000, terminal.stream)
    line.update(record(20))
    text = terminal.read()
    assert len(text) < 40
    assert text.endswith("loss 0.4312")


def test_a_line_that_a_narrower_terminal_has_wrapped_is_cleared_whole(terminal):
    line = StatusLine(terminal.stream)
    line.show("a" * 90, final=True)
    terminal.read()
    terminal.resize(40)
    line.show("b", final=True)
    assert terminal.read() == "\r\x1b[2A\x1b[Jb"


def test_a_message_stands_above_the_live_line(terminal):
    line = StatusLine(terminal.stream)
    line.show("running", final=True)
    terminal.read()
    line.say("W&B is gone")
    assert terminal.read() == "\r\x1b[JW&B is gone\r\nrunning"
    line.close()


def test_without_a_terminal_there_are_whole_plain_lines():
    out = io.StringIO()
    line = LiveLine(100, out, plain_every_s=0)
    for step in (20, 40, 100):
        line.update(record(step))
    line.close()
    lines = out.getvalue().splitlines()
    assert [text.split()[1] for text in lines] == ["20/100", "40/100", "100/100"]
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue()
    assert " left" in lines[1] and " left" not in lines[2]


def test_without_a_terminal_lines_come_rarely_but_the_last_one_always():
    out = io.StringIO()
    line = LiveLine(100, out, plain_every_s=1e9)
    for step in range(1, 101):
        line.update(record(step))
    line.close()
    assert [text.split()[1] for text in out.getvalue().splitlines()] == ["1/100", "100/100"]


def test_a_run_stopped_early_leaves_its_last_step_standing():
    out = io.StringIO()
    line = LiveLine(100, out, plain_every_s=1e9)
    for step in (1, 2, 3):
        line.update(record(step))
    line.close()
    line.close()
    assert [text.split()[1] for text in out.getvalue().splitlines()] == ["1/100", "3/100"]


def test_a_loss_that_is_not_finite_is_said_in_words():
    out = io.StringIO()
    LiveLine(10, out).update({"step": 1, "loss": None})
    assert "loss not finite" in out.getvalue()


def test_progress_counts_to_its_end_and_says_how_long_it_took():
    out = io.StringIO()
    with Progress(3, "images", "packing", out, plain_every_s=0) as progress:
        progress.skip(1)
        progress.advance(2)
    lines = out.getvalue().splitlines()
    assert "3/3 images" in lines[-1] and "images/s" in lines[-1] and " in 0:0" in lines[-1]


def test_progress_of_unknown_length_or_of_nothing_has_no_time_left():
    out = io.StringIO()
    with Progress(None, "samples", "indexing", out, plain_every_s=0) as progress:
        progress.advance(5)
    with Progress(0, "samples", "indexing", out):
        pass
    assert "5 samples" in out.getvalue() and "0/0 samples" in out.getvalue() and "left" not in out.getvalue()


def test_progress_that_failed_does_not_claim_to_have_ended():
    out = io.StringIO()
    with contextlib.suppress(ValueError), Progress(9, "images", "packing", out, plain_every_s=0) as progress:
        progress.advance(2)
        raise ValueError
    assert "2/9" in out.getvalue() and " in 0" not in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (42.4, "0:42"), (727, "12:07"), (11109, "3:05:09"), (187200, "2 d 4 h")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(3.21, "3.2"), (812.4, "812"), (14500, "14.5k"), (2.1e6, "2.1M")])
def test_amounts_are_short(value, text):
    assert amount(value) == text
