"""A training of several processes on one machine, forked from one that has imported everything: what a cluster does to
it (a process that is slow, one that is lost) at the price of a training.

    python -m tests.ldm.processes

Each line that it reads is a list of {"config": ..., "world": N, "slow": rank or None, "lost": [rank, step] or None},
run one after the other; it answers with a line, the exit codes of each run's processes. As a launcher does, it ends the
others when one is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  (imported before the fork: the trainings import it when they begin)
import torch

from lib_ipadapter.standalone.model import require_ldm
from lib_ipadapter.training import objective
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.trainer import Trainer
from tests.ldm import bases


def child(run: dict[str, Any], rank: int, port: int) -> int:
    """One process of the training."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(run["world"]), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    plain, calls = objective.loss, []

    def loss(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if run.get("slow") == rank:
            time.sleep(0.1)
        if run.get("lost") == [rank, len(calls)]:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **kwargs)

    objective.loss = loss
    Trainer(TrainConfig.parse(run["config"])).run()
    return 0


def started(run: dict[str, Any]) -> list[int]:
    """Exit codes of its processes, by rank; negative: the signal that ended it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = Path(run["config"]["base"])
    bases.load_parts(base, base.with_suffix(".yaml"), torch.device("cpu"), torch.float32)  # once, before the fork
    pids: dict[int, int] = {}
    for rank in range(run["world"]):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(2, 1)  # what is printed is no answer
                code = child(run, rank, port)
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids[pid] = rank
    codes: dict[int, int] = {}
    while len(codes) < run["world"]:
        pid, status = os.wait()
        codes[pids[pid]] = os.waitstatus_to_exitcode(status)
        if codes[pids[pid]]:
            for other, rank in pids.items():
                if rank not in codes:
                    os.kill(other, signal.SIGKILL)
    return [codes[rank] for rank in sorted(codes)]


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # ldm prints as it is imported
        require_ldm()
    bases.install(setattr)
    for line in sys.stdin:
        print(json.dumps([started(run) for run in json.loads(line)]), flush=True)
