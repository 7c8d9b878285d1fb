"""A sharded checkpoint: its files, and the texts that the processes which write them exchange."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch._C._distributed_c10d import TCPStore

from dev.cluster.ports import free_port
from sluice_api.artifacts import file_digest
from sluice_api.reasons import Reason
from sluice_trainer.errors import PeerLost, StageError
from sluice_trainer.ranks import Rank
from sluice_trainer.train.checkpoints import sharded
from sluice_trainer.train.checkpoints.sharded import ShardedSaver
from sluice_trainer.train.checkpoints.state import Progress, TrainingState
from sluice_trainer.train.checkpoints.tensor_files import WHOLE, Shard, read
from sluice_trainer.work_folder import WorkFolder

TENSORS = {"weight.a": torch.arange(21.0).view(7, 3), "weight.b": torch.arange(2.0), "step.a": torch.tensor(4.0)}


def parts(count: int) -> list[dict[str, torch.Tensor]]:
    """TENSORS as FSDP2 cuts them."""
    cut = []
    for number in range(count):
        rows = {}
        for name, tensor in TENSORS.items():
            chunks = torch.chunk(tensor, count) if tensor.dim() else [tensor] * count
            rows[name] = chunks[number] if number < len(chunks) else tensor[:0]
        cut.append(rows)
    return cut


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("written", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("wanted", [1, 2, 3, 4, 8])
def test_shards_are_read_as_any_other_number_of_shards(written: int, wanted: int, tmp_path: Path) -> None:
    for number, part in enumerate(parts(written)):
        save_file({name: rows.contiguous() for name, rows in part.items()}, tmp_path / Shard(number, written).file)
    files = [path.name for path in tmp_path.iterdir()] + ["state.json"]
    for number, part in enumerate(parts(wanted)):
        assert same(read(tmp_path, files, Shard(number, wanted)), part)
    assert same(read(tmp_path, files, WHOLE, ("weight.",)), {k: v for k, v in TENSORS.items() if k != "step.a"})


@pytest.fixture
def store() -> Iterator[Callable[[], TCPStore]]:
    """A group's store: each call is one more process that talks through it."""
    port = free_port()
    server = TCPStore("127.0.0.1", port, None, is_master=True, wait_for_workers=False)
    yield lambda: TCPStore("127.0.0.1", port, None, is_master=False)
    del server


@pytest.fixture
def pair(store: Callable[[], TCPStore], tmp_path: Path) -> tuple[ShardedSaver, ShardedSaver]:
    work = WorkFolder(tmp_path)
    return ShardedSaver(Rank(0, 0, 1, 2), store(), work), ShardedSaver(Rank(0, 1, 1, 2), store(), work)


@pytest.fixture
def threads() -> Iterator[Callable[..., Future[None]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def finish(folder: Path, digests: dict[str, str]) -> None:
    assert digests == {path.name: file_digest(path) for path in folder.iterdir()}
    (folder / "manifest.json").write_text("{}")


def test_sharded_checkpoint_is_there_when_all_shards_are(
    pair: tuple[ShardedSaver, ShardedSaver], threads: Callable[..., Future[None]], tmp_path: Path
) -> None:
    folder = tmp_path / "step-1"
    writing = [threads(one.write, folder, part, finish) for one, part in zip(pair, parts(2), strict=True)]
    assert [one.result(10) for one in writing] == [None, None]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *(Shard(n, 2).file for n in (0, 1))]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("unlucky", [0, 1])
def test_shard_that_can_not_be_written_fails_the_save_in_all_processes(
    unlucky: int,
    pair: tuple[ShardedSaver, ShardedSaver],
    threads: Callable[..., Future[None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(tensors: dict[str, torch.Tensor], file: Path) -> None:
        if file.name == Shard(unlucky, 2).file:
            raise OSError(28, "No space left on device")
        save_file(tensors, file)

    monkeypatch.setattr(sharded, "save_file", full)
    writing = [threads(one.write, tmp_path / "step-1", part, finish) for one, part in zip(pair, parts(2), strict=True)]
    with pytest.raises(OSError, match="No space left"):
        writing[unlucky].result(10)
    with pytest.raises(StageError, match=r"Another process says: .*No space left|another"):
        writing[1 - unlucky].result(10)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    test_sharded_checkpoint_is_there_when_all_shards_are(pair, threads, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "{victim}",
        "../adapters",
        ".unfinished-step-1-0123abcd/../adapters",
        ".unfinished-step-2-0123abcd",
        "step-1",
        ".",
    ],
)
def test_sharded_checkpoint_refuses_a_foreign_folder_name_in_the_store(
    name: str, pair: tuple[ShardedSaver, ShardedSaver], store: Callable[[], TCPStore], tmp_path: Path
) -> None:
    """Whoever is on the network may write to the store; a follower writes and removes nothing that it says."""
    only_copy = tmp_path / "adapters" / "export" / "adapter_model.safetensors"
    only_copy.parent.mkdir(parents=True)
    only_copy.write_text("the only copy")
    stranger = store()
    stranger.set("1/folder", name.format(victim=only_copy.parent.parent))
    stranger.set("1/durable", "-sorry")
    with pytest.raises(StageError, match=r"something else on the network writes to the store"):
        pair[1].write(tmp_path / "checkpoints" / "step-1", parts(2)[1], finish)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [only_copy]


def test_sharded_checkpoint_follower_removes_only_its_shard(
    pair: tuple[ShardedSaver, ShardedSaver], store: Callable[[], TCPStore], tmp_path: Path
) -> None:
    """A stranger that names the folder as the leader would still has nothing of the leader's removed."""
    unfinished = tmp_path / ".unfinished-step-1-0123abcd"
    unfinished.mkdir()
    (unfinished / "leaders").write_text("")
    stranger = store()
    stranger.set("1/folder", unfinished.name)
    stranger.set("1/durable", "-sorry")
    with pytest.raises(StageError, match="sorry"):
        pair[1].write(tmp_path / "step-1", parts(2)[1], finish)
    assert [path.name for path in tmp_path.rglob("*")] == [unfinished.name, "leaders"]


def test_sharded_checkpoint_is_given_up_at_a_stop(
    pair: tuple[ShardedSaver, ShardedSaver], threads: Callable[..., Future[None]], tmp_path: Path
) -> None:
    leader, other = pair
    errors: queue.Queue[PeerLost] = queue.Queue()
    leader.on_peer_stop(errors.put)
    writing = threads(leader.write, tmp_path / "step-1", parts(2)[0], finish)
    other.stop()
    assert errors.get(timeout=5).reason is Reason.POD_LOST
    leader.stop()
    with pytest.raises(PeerLost):
        writing.result(5)
    assert list(tmp_path.iterdir()) == []
    last = [
        threads(one.write, tmp_path / "step-2", part, finish, last=True)
        for one, part in zip(pair, parts(2), strict=True)
    ]
    assert [one.result(10) for one in last] == [None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def progress(step: int) -> Progress:
    return Progress(step=step, total_steps=9, learning_rate=0.1)


def test_newest_step_is_done_by_a_process_that_is_behind(
    pair: tuple[ShardedSaver, ShardedSaver], threads: Callable[..., Future[None]]
) -> None:
    weight = nn.Parameter(torch.zeros(2))
    ahead, behind = (TrainingState({"a": weight}, torch.optim.SGD([weight]), progress(step)) for step in (7, 6))

    def train(state: TrainingState) -> None:
        while True:
            with state.updating():
                state.progress = progress(state.progress.step + 1)

    held = [ahead.stop_updates(), behind.stop_updates()]
    for state in (ahead, behind):
        threading.Thread(target=train, args=(state,), daemon=True).start()
    steps = [threads(one.newest_step, step) for one, step in zip(pair, held, strict=True)]
    assert [one.result(5) for one in steps] == [7, 7]
    for state in (ahead, behind):
        state.allow_updates_to(7)
    assert [state.last_snapshot().progress.step for state in (ahead, behind)] == [7, 7]


def test_newest_step_needs_an_answer_of_every_process(
    pair: tuple[ShardedSaver, ShardedSaver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "ANSWER_SECONDS", 0.2)
    with pytest.raises(StageError, match=r"No answer for step-1 in 0\.2 s\."):
        pair[0].newest_step(7)


@pytest.mark.parametrize(("one", "other", "newest"), [(5, None, 5), (None, 5, 5), (5, 10, 10), (None, None, None)])
def test_newest_durable_step_of_all_processes(
    one: int | None,
    other: int | None,
    newest: int | None,
    pair: tuple[ShardedSaver, ShardedSaver],
    threads: Callable[..., Future[int | None]],
) -> None:
    asking = [threads(who.newest_durable, known) for who, known in zip(pair, (one, other), strict=True)]
    assert [asked.result(5) for asked in asking] == [newest, newest]


@pytest.mark.parametrize("told_first", [0, 1])
@pytest.mark.parametrize("slow", [0, 1])
def test_stop_in_the_middle_of_a_save_is_not_counted_as_failed_save(
    told_first: int,
    slow: int,
    pair: tuple[ShardedSaver, ShardedSaver],
    threads: Callable[..., Future[None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has not heard of the stop yet hears only that the other one has given up; or the save is done after all."""
    for one in pair:
        one.on_peer_stop(lambda _, one=one: one.stop())  # type: ignore[misc]
    late = threading.Event()

    def write_late(tensors: dict[str, torch.Tensor], file: Path) -> None:
        if file.name == Shard(slow, 2).file:
            assert late.wait(5)
        save_file(tensors, file)

    monkeypatch.setattr(sharded, "save_file", write_late)
    writing = [threads(one.write, tmp_path / "step-9", part, finish) for one, part in zip(pair, parts(2), strict=True)]
    pair[told_first].stop()
    late.set()
    failed = [one.exception(5) for one in writing]
    assert all(error is None or isinstance(error, PeerLost) for error in failed)
    assert (tmp_path / "step-9").exists() is (failed[0] is None)
