"""Resuming: a training is known by its content, wherever it lies; processes and nodes agree on where it goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib_ipadapter.errors import ConfigError
from lib_ipadapter.training import ema
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.identity import agreed_step, check_same, identity_of
from lib_ipadapter.training.run_folder import RunFolder
from lib_ipadapter.training.sources import open_source
from tests.training_pictures import pictures, tar

ROOT = Path(__file__).resolve().parents[2]


def files(root: Path) -> Path:
    pictures(root / "data", 3)
    (root / "base.safetensors").write_bytes(b"base")
    (root / "encoder.safetensors").write_bytes(b"encoder")
    return root


def config(root: str | Path, out: Path, **fields: object) -> TrainConfig:
    values = {
        "base": f"{root}/base.safetensors",
        "data": f"{root}/data",
        "encoder": f"{root}/encoder.safetensors",
    }
    return TrainConfig.parse({**values, "out": str(out), **fields})


def begin(config: TrainConfig, processes: int = 1) -> None:
    """As the trainer does it."""
    folder = RunFolder(Path(config.out), config)
    folder.begin()
    identity = identity_of(config, open_source(config.data).identity, processes)
    check_same(folder.identity(), identity, folder.root)
    folder.write(identity)
    folder.of(10).mkdir(exist_ok=True)


def test_other_paths_to_the_same_content_are_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = files(tmp_path / "here"), tmp_path / "out"
    begin(config(root, out))
    begin(config(f"{root}/", out))
    begin(config(f"{root}/../here", out))
    monkeypatch.chdir(tmp_path)
    begin(config("here", out))
    shutil.copytree(root, tmp_path / "there", copy_function=shutil.copyfile)  # other times, too
    begin(config(tmp_path / "there", out))
    assert f"{tmp_path}/there/data" in (out / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [("base.safetensors", "the base model"), ("encoder.safetensors", "the encoder"), ("data/00.txt", "the data"),
     ("data/00.jpg", "the data"), ("data/99.jpg", "the data")],
)  # fmt: skip
def test_other_content_under_the_same_path_is_another_training(tmp_path: Path, name: str, words: str) -> None:
    root, out = files(tmp_path / "here"), tmp_path / "out"
    begin(config(root, out))
    with (root / name).open("ab") as file:
        file.write(b"more")
    before = (out / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=f"other content of {words}"):
        begin(config(root, out, workers=0))
    assert (out / "config.yaml").read_text() == before


def test_another_number_of_processes_is_refused_with_the_right_one(tmp_path: Path) -> None:
    root, out = files(tmp_path / "here"), tmp_path / "out"
    begin(config(root, out), processes=2)
    with pytest.raises(ConfigError, match="processes: got 1, expected 2"):
        begin(config(root, out), processes=1)
    begin(config(root, out), processes=2)


def test_the_cache_counts_and_a_run_without_a_checkpoint_is_none(tmp_path: Path) -> None:
    root, out = files(tmp_path / "here"), tmp_path / "out"
    begin(config(root, out))
    with pytest.raises(ConfigError, match="cache was False"):
        begin(config(root, out, cache=True))
    shutil.rmtree(out / "checkpoints")
    begin(config(root, out, cache=True), processes=3)


def test_shards_are_known_by_names_and_sizes(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": b"x"})
    before = open_source(path)
    os.utime(path, ns=(1, 1))
    assert open_source(path).identity == before.identity
    assert open_source(path).fingerprint != before.fingerprint or path.stat().st_mtime_ns == 1


class OneProcess:
    num_processes, device = 1, "cpu"

    def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        return value


NODES = """
import os, signal, socket, sys
from pathlib import Path
from accelerate import Accelerator
from lib_ipadapter.errors import TrainingError
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.identity import agreed_step
from lib_ipadapter.training.run_folder import RunFolder

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]

def node(rank):
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator, root = Accelerator(cpu=True), Path(sys.argv[1])
    assert accelerator.num_processes == 2
    config = TrainConfig.parse({"base": "b", "data": "d", "encoder": "e", "out": "o"})
    for name in ("both", "first", "second", "none"):
        try:
            found = agreed_step(accelerator, RunFolder(root / f"{name}{rank}", config))
        except TrainingError as error:
            found = str(error)[:58]
        (root / f"{name}-{rank}.txt").write_text(str(found))

pids = []
for rank in "01":
    if not (pid := os.fork()):
        node(rank)
        os._exit(0)
    pids.append(pid)
while pids:
    pid, status = os.wait()
    pids.remove(pid)
    if status:  # the other would wait for it
        for other in pids:
            os.kill(other, signal.SIGKILL)
        raise SystemExit(1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_checkpoint_that_one_node_does_not_see_stops_all(tmp_path: Path) -> None:
    """Two processes with a folder each; the second lacks what the first would resume."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    for name in ("both0", "both1", "first0", "second1"):
        (tmp_path / name / "checkpoints" / "step-00000010").mkdir(parents=True)
    (tmp_path / "both1" / "checkpoints" / "step-00000020").mkdir()  # newer, but only there
    done = subprocess.run(
        [sys.executable, "-c", NODES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {path.stem: path.read_text() for path in tmp_path.glob("*-?.txt")}
    refused = "1 of 2 processes do not see the checkpoint of step 10 in "
    assert found["both-0"] == found["both-1"] == "10"
    assert found["first-0"].startswith(refused[:57])
    assert found["first-1"].startswith(refused[:57])
    assert found["second-0"] == found["second-1"] == found["none-0"] == found["none-1"] == "None"


def test_one_process_resumes_its_newest(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    folder = RunFolder(tmp_path, config(tmp_path, tmp_path))
    assert agreed_step(OneProcess(), folder) is None
    for step in (10, 30, 20):
        folder.of(step).mkdir(parents=True)
    assert agreed_step(OneProcess(), folder) == 30


def test_the_average_follows_slowly_and_quickly_at_first() -> None:
    """average = keep * average + (1 - keep) * model, by hand; keep is min(decay, (1 + step) / (10 + step))."""
    average, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(average.weight)
    torch.nn.init.ones_(model.weight)
    ema.update(average, model, 0.9999, 0)
    assert average.weight.item() == pytest.approx(0.9)
    torch.nn.init.zeros_(average.weight)
    ema.update(average, model, 0.99, 100_000)
    assert average.weight.item() == pytest.approx(0.01)
    ema.update(average, model, 0.99, 100_001)
    assert average.weight.item() == pytest.approx(1 - 0.99**2)
    assert model.weight.item() == 1
