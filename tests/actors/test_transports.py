from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actors.engines.protocol import WeightUpdate
from actors.transports.object_store import NodeMirror, Shipper, materialise, mirror_folder, remove_versions, ship
from actors.transports.shared_memory import (
    CorruptVersionError,
    ReadLease,
    VersionGoneError,
    delete_unless_read,
    verify_folder,
    version_folder,
    version_folders,
    write_folder,
)
from actors.transports.tensor_file import TensorFileWriter, checksum_function, mismatched_tensors
from rewards.trajectory import PolicyVersion

TENSORS = {
    "embed.weight": torch.arange(12.0).reshape(3, 4),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
}
ADAPTER = {"r": 4, "lora_alpha": 8.0, "lr": 1e-05, "target_modules": ["q_proj"]}


def write(directory: Path, version: int = 0, tensors=None, **options):
    values = {"step": version, "incarnation": 0, "dtype": "float32", "kind": "full"} | options
    return write_folder(iter((tensors or TENSORS).items()), directory, version=version, **values)


def flip(path: Path, position: int, mask: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def replace_text(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


# -- version folders -------------------------------------------------------------------------------------------------


def test_a_version_is_a_safetensors_file_of_exactly_the_tensors(tmp_path):
    folder, manifest = write(tmp_path, 3)
    loaded = load_file(folder / "model.safetensors")
    assert list(version_folders(tmp_path)) == [3]
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    assert manifest.num_bytes == 4 * (12 + 1 + 0 + 6)
    assert verify_folder(folder, manifest.digest) == manifest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tensors_are_cast_to_the_engines_dtype(tmp_path, dtype):
    values = {"w": torch.randn(7, 5), "already": torch.randn(3).to(getattr(torch, dtype))}
    folder, _ = write(tmp_path, tensors=values, dtype=dtype)
    loaded = load_file(folder / "model.safetensors")
    assert all(torch.equal(loaded[n], t.to(getattr(torch, dtype))) for n, t in values.items())


def test_equal_weights_of_one_version_have_one_digest_and_others_another(tmp_path):
    digests = [
        write(tmp_path / "a")[1].digest,
        write(tmp_path / "b")[1].digest,
        write(tmp_path / "c", step=7)[1].digest,
        write(tmp_path / "d", tensors={**TENSORS, "scalar": torch.tensor(2.75)})[1].digest,
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_more_tensors_than_the_header_has_room_for(tmp_path):
    writer = TensorFileWriter(tmp_path / "file", header_bytes=64)
    arrays = {f"layer.{i}.weight": np.full(100, i, np.float32) for i in range(50)}
    for name, array in arrays.items():
        writer.add(name, "F32", array.shape, array.view(np.uint8))
    writer.finish()
    loaded = load_file(tmp_path / "file")
    assert all(np.array_equal(loaded[name].numpy(), array) for name, array in arrays.items())
    assert mismatched_tensors(tmp_path / "file", writer.entries, writer.algorithm) == []
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_every_flipped_byte_of_a_tensor_file_is_found(tmp_path):
    path = tmp_path / "file"
    writer = TensorFileWriter(path, header_bytes=256)
    for name in ("a", "b"):
        writer.add(name, "F32", (3,), np.arange(3, dtype=np.float32).view(np.uint8))
    writer.finish()
    intact = path.read_bytes()
    assert len(intact) == 256 + 24
    for position in range(len(intact)):
        flip(path, position, 1 << position % 8)
        try:
            found = mismatched_tensors(path, writer.entries, writer.algorithm)
        except ValueError:
            found = ["header"]
        assert found, f"byte {position}"
        path.write_bytes(intact)


def test_every_flipped_byte_of_manifest_and_adapter_configuration_is_found(tmp_path):
    tensors = {"w": torch.ones(2)}
    folder, manifest = write(tmp_path, tensors=tensors, kind="adapter", adapter_config=ADAPTER)
    for name in ("manifest.json", "adapter_config.json"):
        intact = (folder / name).read_bytes()
        for position in range(len(intact)):
            flip(folder / name, position, 1 << position % 8)
            with pytest.raises(CorruptVersionError):
                verify_folder(folder, manifest.digest)
            (folder / name).write_bytes(intact)
    assert verify_folder(folder, manifest.digest).config == ADAPTER


def test_a_flipped_byte_names_the_tensor_it_is_in(tmp_path):
    folder, manifest = write(tmp_path)
    size = (folder / "model.safetensors").stat().st_size
    flip(folder / "model.safetensors", size - manifest.num_bytes + 12 * 4, 0x10)
    with pytest.raises(CorruptVersionError, match=r"1 tensors differ.*first scalar"):
        verify_folder(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: os.truncate(folder / "model.safetensors", 100),
        lambda folder: os.truncate(folder / "model.safetensors", 0),
        lambda folder: (folder / "model.safetensors").open("ab").write(b"x"),
        lambda folder: (folder / "manifest.json").write_text("7"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace("full", "x")
        ),
    ],
)
def test_cut_missing_or_nonsensical_files_are_corrupt_also_without_an_announced_digest(tmp_path, damage):
    folder, _ = write(tmp_path)
    damage(folder)
    with pytest.raises(CorruptVersionError):
        verify_folder(folder)


def test_checksums_do_not_depend_on_the_pieces_the_bytes_come_in():
    data = np.random.default_rng(0).integers(0, 256, 3001, dtype=np.uint8).data
    for algorithm in ("crc32", checksum_function()[0]):
        digests = set()
        for size in (1, 100, 5000):
            checksum = checksum_function(algorithm)[1]()
            for start in range(0, len(data), size):
                checksum.update(data[start : start + size])
            digests.add(checksum.hexdigest())
        assert len(digests) == 1
    assert digests


def test_a_checksum_that_is_not_installed_is_corrupt_and_says_what_to_install(tmp_path):
    folder, _ = write(tmp_path)
    replace_text(folder / "manifest.json", checksum_function()[0], "sha512")
    with pytest.raises(CorruptVersionError, match="install xxhash"):
        verify_folder(folder)


def test_a_version_is_never_rewritten(tmp_path):
    _, manifest = write(tmp_path, 1)
    with pytest.raises(FileExistsError, match="version 1"):
        write(tmp_path, 1, tensors={"other": torch.zeros(1)})
    assert verify_folder(version_folder(tmp_path, 1), manifest.digest)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "int8"}, "dtype='int8'"), ({"kind": "delta"}, "kind='delta'"), ({"kind": "adapter"}, "adapter_config")],
)
def test_what_no_engine_could_load_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "versions", **options)
    assert not (tmp_path / "versions").exists()


def test_a_version_without_tensors_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no tensors"):
        write_folder(iter(()), tmp_path, version=0, step=0, incarnation=0, dtype="float32", kind="full")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_writer_leaves_nothing(tmp_path):
    def tensors():
        yield "a", torch.zeros(3)
        raise RuntimeError("a rank died")

    with pytest.raises(RuntimeError, match="a rank died"):
        write_folder(tensors(), tmp_path, version=0, step=0, incarnation=0, dtype="float32", kind="full")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("earlier", [1, 3, 400_000, 3_000_000])
@pytest.mark.parametrize("count", [1, 300_000, 700_000])
def test_a_version_written_over_a_deleted_one_is_as_good_as_new(tmp_path, earlier, count):
    """The file found may be shorter or longer than what is written; blocks lie on both sides of its end."""
    old, _ = write(tmp_path / "reused", 0, tensors={"w": torch.full((earlier,), 7.0)})
    inode = (old / "model.safetensors").stat().st_ino
    delete_unless_read(old, keep_memory=True)
    tensors = {"a": torch.randn(count), "b": torch.randn(5)}
    folder, manifest = write(tmp_path / "reused", 1, tensors=tensors)
    fresh, expected = write(tmp_path / "fresh", 1, tensors=tensors)
    assert (folder / "model.safetensors").stat().st_ino == inode
    assert (folder / "model.safetensors").read_bytes() == (fresh / "model.safetensors").read_bytes()
    assert verify_folder(folder, expected.digest) == manifest
    assert [p.name for p in (tmp_path / "reused").iterdir()] == ["v00000001"]


def test_a_version_that_is_read_is_never_written_over(tmp_path):
    folder, manifest = write(tmp_path, 0)
    with ReadLease(folder):
        assert not delete_unless_read(folder, keep_memory=True)
        write(tmp_path, 1, tensors={"other": torch.full((50,), 9.0)})
        assert verify_folder(folder, manifest.digest)


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("has_spare", [False, True])
def test_a_killed_writer_leaves_no_version_and_the_next_one_sweeps_up(tmp_path, at, has_spare):
    if has_spare:
        delete_unless_read(write(tmp_path, 7)[0], keep_memory=True)

    def tensors():
        for index, item in enumerate(TENSORS.items()):
            if index == at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        write_folder(tensors(), tmp_path, version=0, step=0, incarnation=0, dtype="float32", kind="full")
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert version_folders(tmp_path) == {}
    assert len(list(tmp_path.iterdir())) == 1
    folder, manifest = write(tmp_path, 0)
    assert list(tmp_path.iterdir()) == [folder]
    assert verify_folder(folder, manifest.digest)


def test_the_unfinished_folder_of_a_living_writer_is_left_alone(tmp_path):
    mine, other = tmp_path / f".v00000001-{os.getpid()}.tmp", tmp_path / f".v00000002-{os.getppid()}.tmp"
    mine.mkdir()
    other.mkdir()
    write(tmp_path, 5)
    assert mine.exists()
    assert other.exists()


# -- leases ----------------------------------------------------------------------------------------------------------


def test_a_leased_version_survives_deletion_and_goes_when_released(tmp_path):
    folder, manifest = write(tmp_path)
    one, other = ReadLease(folder), ReadLease(folder)
    assert not delete_unless_read(folder)
    one.release()
    assert not delete_unless_read(folder)
    assert verify_folder(folder, manifest.digest)
    other.release()
    other.release()
    assert delete_unless_read(folder)
    assert not folder.exists()
    assert delete_unless_read(folder)  # a second deletion has nothing to do


def test_a_lease_ends_with_its_block_and_with_its_process(tmp_path):
    folder, _ = write(tmp_path)
    with ReadLease(folder):
        assert not delete_unless_read(folder)
    ready, written = os.pipe()
    child = os.fork()
    if not child:
        lease = ReadLease(folder)
        os.write(written, b"held")
        signal.pause()
        lease.release()
    assert os.read(ready, 4) == b"held"
    assert not delete_unless_read(folder)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert delete_unless_read(folder)


def test_a_lease_on_a_deleted_version_is_refused(tmp_path):
    folder, _ = write(tmp_path)
    delete_unless_read(folder)
    with pytest.raises(VersionGoneError):
        ReadLease(folder)
    with pytest.raises(VersionGoneError):
        verify_folder(folder)


def test_a_lease_that_waited_for_a_deletion_sees_that_the_version_is_gone(tmp_path, monkeypatch):
    """The reader opens the manifest, then the deleter takes the lock and deletes, then the reader gets the lock."""
    import actors.transports.shared_memory as module

    folder, _ = write(tmp_path)
    flock = module.fcntl.flock

    def deleted_first(fd: int, operation: int) -> None:
        monkeypatch.setattr(module.fcntl, "flock", flock)
        assert delete_unless_read(folder)
        flock(fd, operation)

    monkeypatch.setattr(module.fcntl, "flock", deleted_first)
    open_files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(VersionGoneError, match="while it was being taken"):
        ReadLease(folder)
    assert len(os.listdir("/proc/self/fd")) == open_files


# -- object store ----------------------------------------------------------------------------------------------------


class Chunks:
    """An object store in memory; `damage` changes what is read."""

    def __init__(self) -> None:
        self.objects: list[bytes] = []
        self.gets = 0
        self.damage = lambda chunk: chunk

    async def put(self, chunk: np.ndarray) -> int:
        self.objects.append(chunk.tobytes())
        return len(self.objects) - 1

    async def get(self, reference: int) -> np.ndarray:
        self.gets += 1
        await asyncio.sleep(0)
        return self.damage(np.frombuffer(self.objects[reference], np.uint8))


async def shipped_version(directory: Path, chunks: Chunks, version: int = 2, chunk_bytes: int = 1000, **options):
    folder, manifest = write(directory, version, **options)
    update = WeightUpdate(
        version=PolicyVersion(version), step=version, incarnation=0, path=str(folder), digest=manifest.digest,
        kind=options.get("kind", "full"), probe_token_ids=(1, 2), probe_logprobs=(0.0, -1.0),
    )  # fmt: skip
    return await ship(update, chunks, chunk_bytes=chunk_bytes), folder


@pytest.mark.parametrize("options", [{}, {"kind": "adapter", "adapter_config": ADAPTER}])
async def test_a_shipped_version_arrives_byte_for_byte(tmp_path, options):
    chunks = Chunks()
    shipped, folder = await shipped_version(tmp_path / "here", chunks, **options)
    there = await materialise(shipped, chunks, tmp_path / "there", keep_versions=2)
    assert Path(there.path) == version_folder(tmp_path / "there", 2)
    assert (there.version, there.digest, there.probe_logprobs) == (2, shipped.update.digest, (0.0, -1.0))
    sent, arrived = [{p.name: p.read_bytes() for p in f.iterdir()} for f in (folder, Path(there.path))]
    assert sent == arrived
    assert max(len(chunk) for chunk in chunks.objects) == 1000


async def test_one_caller_on_a_node_fetches_and_the_others_use_it(tmp_path):
    chunks = Chunks()
    shipped, _ = await shipped_version(tmp_path / "here", chunks, chunk_bytes=100_000)
    calls = [materialise(shipped, chunks, tmp_path / "there", keep_versions=1) for _ in range(4)]
    paths = {update.path for update in await asyncio.gather(*calls)}
    assert len(paths) == 1
    assert chunks.gets == len(chunks.objects)
    await materialise(shipped, chunks, tmp_path / "there", keep_versions=1)
    assert chunks.gets == len(chunks.objects)


async def test_a_cancelled_waiter_does_not_keep_the_others_out(tmp_path):
    chunks = Chunks()
    shipped, _ = await shipped_version(tmp_path / "here", chunks)
    may_go_on = asyncio.Event()

    class Slow(Chunks):
        async def get(self, reference: int) -> np.ndarray:
            await may_go_on.wait()
            return await chunks.get(reference)

    fetching = asyncio.create_task(materialise(shipped, Slow(), tmp_path / "there", keep_versions=1))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(materialise(shipped, chunks, tmp_path / "there", keep_versions=1))
    await asyncio.sleep(0.05)
    for task in (waiting, fetching):
        task.cancel()
    await asyncio.gather(waiting, fetching, return_exceptions=True)
    assert version_folders(tmp_path / "there") == {}
    async with asyncio.timeout(5):
        there = await materialise(shipped, chunks, tmp_path / "there", keep_versions=1)
    assert verify_folder(Path(there.path), shipped.update.digest)


async def test_damage_on_the_way_is_refused_and_not_kept(tmp_path):
    chunks = Chunks()
    shipped, _ = await shipped_version(tmp_path / "here", chunks)
    chunks.damage = lambda chunk: chunk ^ np.uint8(1)
    with pytest.raises(CorruptVersionError):
        await materialise(shipped, chunks, tmp_path / "there", keep_versions=1)
    assert version_folders(tmp_path / "there") == {}
    chunks.damage = lambda chunk: chunk
    there = await materialise(shipped, chunks, tmp_path / "there", keep_versions=1)
    assert verify_folder(Path(there.path), shipped.update.digest)


async def test_a_node_keeps_its_newest_versions_and_those_that_are_read(tmp_path):
    chunks, leases = Chunks(), []
    shipped = [(await shipped_version(tmp_path / "here", chunks, v, 1 << 20))[0] for v in range(5)]
    for version in range(4):
        there = await materialise(shipped[version], chunks, tmp_path / "there", keep_versions=2)
        if version == 1:
            leases.append(ReadLease(Path(there.path)))
    assert list(version_folders(tmp_path / "there")) == [1, 2, 3]
    leases[0].release()
    late = await materialise(shipped[0], chunks, tmp_path / "there", keep_versions=1)  # a worker far behind
    assert verify_folder(Path(late.path), shipped[0].update.digest)
    await materialise(shipped[4], chunks, tmp_path / "there", keep_versions=2)
    assert list(version_folders(tmp_path / "there")) == [3, 4]


class Source:
    """A weight store on node "a" that announces what it is told to."""

    def __init__(self, chunks: Chunks) -> None:
        self.shipper, self.update = Shipper(chunks), None

    async def newest(self):
        return self.update

    async def wait_newer(self, version, timeout_s):
        return self.update

    async def node(self):
        return "a"

    async def shipped(self, version):
        if version != self.update.version:
            raise VersionGoneError(f"{version}")
        return await self.shipper.shipped(self.update)


def mirror(source: Source, chunks: Chunks, directory: Path, node: str, *, always: bool = False) -> NodeMirror:
    return NodeMirror(source, chunks, directory, node=node, keep_versions=1, always=always)


async def test_a_worker_uses_the_files_of_its_own_node_and_copies_those_of_another(tmp_path):
    chunks = Chunks()
    source = Source(chunks)
    source.update = (await shipped_version(tmp_path / "here", Chunks()))[0].update
    there = mirror_folder(tmp_path / "here", "b")
    own, first, second = (mirror(source, chunks, there, node) for node in ("a", "b", "b"))
    assert await own.newest() == source.update
    assert not chunks.objects
    updates = await asyncio.gather(first.newest(), second.wait_newer(PolicyVersion(-1), 1.0))
    assert {Path(u.path) for u in updates} == {version_folder(there, 2)}
    assert chunks.gets == len(chunks.objects) > 0
    forced = await mirror(source, chunks, tmp_path / "forced", "a", always=True).newest()
    assert Path(forced.path).parent == tmp_path / "forced"
    remove_versions(tmp_path / "here")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forced"]


async def test_a_version_outrun_on_its_way_is_no_update(tmp_path):
    chunks = Chunks()
    source = Source(chunks)
    source.update = (await shipped_version(tmp_path / "here", Chunks()))[0].update
    remove_versions(tmp_path / "here")
    assert await mirror(source, chunks, tmp_path / "there", "b").newest() is None


async def test_the_store_holds_the_chunks_of_one_version(tmp_path):
    chunks = Chunks()
    shipper = Shipper(chunks)
    one, two = [(await shipped_version(tmp_path / "here", Chunks(), version=v))[0].update for v in (2, 3)]
    assert await shipper.shipped(one) is await shipper.shipped(one)
    newer = await shipper.shipped(two)
    assert newer.update.version == 3
    assert await shipper.shipped(two) is newer
