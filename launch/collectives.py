"""Whether processes can meet and add up tensors, and how fast: for `lacuna doctor`, alone or as the tasks of a job.

`srun lacuna doctor` measures the job's own processes over its own network. Started alone, it starts two processes on
this machine, with NCCL where each has a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from launch import environment as env
from pretrain.errors import LacunaError

_BYTES = 32 << 20
_ROUNDS = 3
_TIMEOUT_S = 60.0


def collectives(place: env.Environment) -> tuple[bool, str]:
    """Whether it works, and one line that says so; the same on all ranks of place's job."""
    if place.world_size > 1:
        return _measure(place)
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-m", "launch.collectives", str(place.master_port)]
    pair = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root)
            for rank in range(2)]  # fmt: skip
    try:
        said, _ = pair[0].communicate(timeout=3 * _TIMEOUT_S)
        works, line = json.loads(said)
        return works, line
    except (subprocess.TimeoutExpired, ValueError) as error:
        return False, f"two processes on this machine do not meet ({error}); is torch whole? python -c 'import torch'"
    finally:
        for process in pair:
            process.kill()
            process.communicate()


def _measure(place: env.Environment) -> tuple[bool, str]:
    """Joins the others and adds up tensors with them."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.device_count() >= (2 if place.launcher == "python" else env.local_world_size())
    env.export(place, cuda=cuda)
    from pretrain.engine.distributed import init_distributed  # DeepSpeed looks for devices as it is imported

    among = f"{place.world_size} processes"
    try:
        init_distributed(place, _TIMEOUT_S)
        values = torch.ones(_BYTES // 4, device=f"cuda:{place.local_rank}" if cuda else "cpu")
        dist.all_reduce(values)
        began = time.perf_counter()
        for _ in range(_ROUNDS):
            dist.all_reduce(values)
        right = bool(values[0] == float(place.world_size) ** (_ROUNDS + 1))  # waits for a GPU
        rate = _BYTES * _ROUNDS / (time.perf_counter() - began) / 1e9
        dist.destroy_process_group()
    except (RuntimeError, OSError, LacunaError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return False, (
            f"{among} do not meet at {place.master_addr}:{place.master_port}: {reason}; name the network in "
            "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME, and look at NCCL_DEBUG=INFO"
        )
    backend = "nccl" if cuda else "gloo"
    if not right:
        return False, f"{backend} gave {among} a wrong sum; the network or a driver is broken"
    return True, f"{backend} adds up 32 MB over {among} at {rate:.1f} GB/s"


def main() -> None:
    """One of two processes; port and rank are on the command line, and the outcome goes to stdout as JSON."""
    port, rank = map(int, sys.argv[1:])
    found = _measure(env.Environment(rank, 2, rank, "127.0.0.1", port, "python"))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
