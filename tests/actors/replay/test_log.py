"""What survives on disk, and what a reader makes of damage."""

import json

import pytest

from actors.replay.log import BlockStore, CorruptLogError, Journal, ReplayLog, read_journal, read_json, write_json
from tests.actors.replay.drivers import full_disk


def events(path, start=0):
    return [event for event, _ in read_journal(path, start)]


def written(path, *values):
    journal = Journal(path)
    for value in values:
        journal.append({"n": value})
    return journal


def test_a_journal_gives_back_what_was_appended_across_openings(tmp_path):
    path = tmp_path / "j"
    written(path, 1, 2).close()
    written(path, "drei\n", {"a": [None]}).close()
    assert events(path) == [{"n": 1}, {"n": 2}, {"n": "drei\n"}, {"n": {"a": [None]}}]


def test_positions_lead_to_the_events_behind_them(tmp_path):
    journal = written(tmp_path / "j", 1, 2, 3)
    positions = [position for _, position in read_journal(tmp_path / "j")]
    assert events(tmp_path / "j", positions[0]) == [{"n": 2}, {"n": 3}]
    assert positions[-1] == journal.end
    assert events(tmp_path / "j", journal.end) == []


def test_every_torn_end_is_cut_off_and_written_over(tmp_path):
    path = tmp_path / "j"
    written(path, 1).close()
    intact = path.read_bytes()
    written(path, "long enough to be cut anywhere").close()
    whole = path.read_bytes()
    for size in range(len(intact), len(whole)):
        path.write_bytes(whole[:size])
        assert events(path) == [{"n": 1}]
        written(path, 2).close()
        assert events(path) == [{"n": 1}, {"n": 2}]


def test_damage_before_intact_events_is_an_error_that_says_where(tmp_path):
    path = tmp_path / "j"
    written(path, 1, 2, 3).close()
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 0xFF
    path.write_bytes(body)
    with pytest.raises(CorruptLogError, match=f"byte {len(body) // 3} begins a damaged event, but intact ones follow"):
        Journal(path)


def test_a_missing_journal_is_empty(tmp_path):
    assert events(tmp_path / "none") == []


def test_json_files_are_replaced_whole(tmp_path):
    path = tmp_path / "state.json"
    assert read_json(path) is None
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b.replace(b"1", b"2"), lambda b: b"", lambda b: b"{}"])
def test_a_damaged_json_file_counts_as_missing(tmp_path, damage):
    path = tmp_path / "state.json"
    write_json(path, {"a": 11})
    path.write_bytes(damage(path.read_bytes()))
    assert read_json(path) is None


def test_blocks_are_read_back_by_place(tmp_path):
    store = BlockStore(tmp_path, max_file_bytes=100)
    places = [store.append("live", bytes([i]) * 40) for i in range(6)]
    places.append(store.append("frozen", b""))
    assert [store.read(place) for place in places] == [bytes([i]) * 40 for i in range(6)] + [b""]
    assert len({name for name, _, _ in places}) == 3
    assert BlockStore(tmp_path).read(places[3]) == bytes([3]) * 40


def test_blocks_that_are_gone_or_not_intact_are_none(tmp_path):
    store = BlockStore(tmp_path)
    name, offset, size = store.append("live", b"x" * 50)
    assert store.read([name, offset, size + 1]) is None
    assert store.read([name, offset + 1, size]) is None
    assert store.read(["live-99.blk", 0, 3]) is None
    body = bytearray((tmp_path / name).read_bytes())
    body[-1] ^= 1
    (tmp_path / name).write_bytes(body)
    assert store.read([name, offset, size]) is None


def test_a_block_that_does_not_fit_on_the_disk_leaves_nothing_behind(tmp_path):
    store = BlockStore(tmp_path)
    name, _, _ = first = store.append("live", b"x" * 50)
    size = (tmp_path / name).stat().st_size
    with full_disk(tmp_path / name, 20), pytest.raises(OSError, match="20 of 58 bytes of a group were written"):
        store.append("live", b"y" * 50)
    assert (tmp_path / name).stat().st_size == size
    second = store.append("live", b"z" * 50)
    assert [store.read(first), store.read(second)] == [b"x" * 50, b"z" * 50]


def test_new_openings_never_write_into_old_files(tmp_path):
    first = BlockStore(tmp_path).append("live", b"a")
    second = BlockStore(tmp_path).append("live", b"b")
    assert first[0] != second[0]


def test_only_files_nobody_needs_are_deleted(tmp_path):
    old = BlockStore(tmp_path)
    kept, gone = old.append("frozen", b"kept"), old.append("live", b"gone")
    old.close()
    store = BlockStore(tmp_path)
    writing = store.append("live", b"new")
    store.keep_only([kept])
    assert store.read(kept) == b"kept"
    assert store.read(gone) is None
    assert store.read(writing) == b"new"


def test_recovery_starts_at_the_snapshot_and_falls_back_to_the_journal(tmp_path):
    log = ReplayLog(tmp_path, fsync="never")
    log.append({"n": 1})
    log.snapshot({"seen": 1}, [])
    log.append({"n": 2})
    log.close()
    recovered = ReplayLog(tmp_path).recover()
    assert (recovered.state, recovered.events) == ({"seen": 1}, [{"n": 2}])
    (tmp_path / "snapshot.json").write_text("nonsense")
    recovered = ReplayLog(tmp_path).recover()
    assert (recovered.state, recovered.events) == (None, [{"n": 1}, {"n": 2}])


def test_a_snapshot_of_a_longer_journal_is_not_used(tmp_path):
    log = ReplayLog(tmp_path)
    log.append({"n": 1})
    position = log.journal.end
    log.append({"n": 2})
    log.snapshot({"seen": 2}, [])
    log.close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:position])
    recovered = ReplayLog(tmp_path).recover()
    assert (recovered.state, recovered.events) == (None, [{"n": 1}])


@pytest.mark.parametrize(("fsync", "durable", "expected"), [
    ("always", False, True), ("commit", False, False), ("commit", True, True), ("never", True, False),
])  # fmt: skip
def test_bytes_are_forced_to_disk_when_the_setting_says_so(tmp_path, monkeypatch, fsync, durable, expected):
    log = ReplayLog(tmp_path, fsync=fsync)
    log.blocks.append("live", b"x")
    synced = []
    monkeypatch.setattr("actors.replay.log.os.fsync", synced.append)
    log.append({"n": 1}, durable=durable)
    assert (log.journal._file.fileno() in synced) == expected
    if durable and expected:
        assert synced.index(log.blocks._open["live"].fileno()) < synced.index(log.journal._file.fileno())


def test_lines_are_json_behind_their_checksum(tmp_path):
    written(tmp_path / "j", 1).close()
    checksum, body = (tmp_path / "j").read_text().split(" ", 1)
    assert json.loads(body) == {"n": 1}
    assert len(checksum) == 8
