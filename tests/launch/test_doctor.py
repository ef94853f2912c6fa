"""launch/doctor.py"""

import re
import socket

import torch

from launch import cli
from launch.collectives import collectives
from launch.environment import Environment
from masking.attention.op import BRANCHES, Shape, choose
from masking.attention.weighting import Weighting


def test_doctor_says_what_computes_each_attention_and_why(capsys):
    assert cli.main(["doctor", "--attention"]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.split()[1] == "attention"]
    assert len(lines) == 14 and all(", because " in line for line in lines)
    assert all(line.split(": ")[-1].split(",")[0] in BRANCHES for line in lines)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    soft = choose(device, torch.bfloat16, Weighting(alpha=torch.ones(())), Shape(64, 197, 197))
    line = f"bfloat16 iLLaMA's soft mask (197 tokens, heads of 64): {soft.name}, because {soft.reason}"
    assert any(found.endswith(line) for found in lines)


def test_doctor_is_silent_on_attention_unless_asked_and_tries_the_collectives_and_the_disk(capsys):
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert " attention " not in said
    assert re.search(r"^ok +collectives (gloo|nccl) adds up 32 MB over 2 processes at \d+\.\d GB/s$", said, re.M)
    assert re.search(r"^ok +disk +writes [\d,]+ MB/s: a ViT-B's checkpoint takes some \d+ s", said, re.M)


def test_processes_that_cannot_meet_are_told_of_with_what_to_do():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = Environment(0, 1, 0, "127.0.0.1", taken.getsockname()[1], "python")
        works, said = collectives(place)
    assert not works and "2 processes do not meet at 127.0.0.1:" in said and "NCCL_SOCKET_IFNAME" in said
