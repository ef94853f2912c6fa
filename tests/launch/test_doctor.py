"""launch/doctor.py"""

import torch

from launch import cli
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


def test_doctor_is_silent_on_attention_unless_asked(capsys):
    assert cli.main(["doctor"]) == 0
    assert " attention " not in capsys.readouterr().out
