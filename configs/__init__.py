"""Experiments, one a file: each defines `config()` and names its command, hardware and expected number. They are read by
their path (`lacuna train configs/tiny_cpu.py`), and ship with the package so that an installed copy has them too."""
