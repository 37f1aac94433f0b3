"""Whatever happens to a search, going on with it ends as if nothing had happened, bit for bit."""

import csv
import json
import os
import random
import signal
import time

import pytest
import regression
import toy
from processes import complete, finish, lasting, num_lines, one_line, start, wait_for

from hw1jax import results, search

LONG = "HW1JAX_LONG_TESTS" in os.environ  # as many kills and workers as the project asks for, ten minutes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if LONG else 600)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(what is left, calls of the program in the search, seconds of a whole run)"""
    folder = tmp_path_factory.mktemp("undisturbed")
    complete(folder / "first")
    begin = time.monotonic()
    complete(folder / "second", "--log", folder / "log")
    seconds = time.monotonic() - begin
    assert lasting(folder / "first") == lasting(folder / "second")
    return lasting(folder / "second"), num_lines(folder / "log"), seconds


def test_killed_at_any_moment_it_goes_on_to_the_same_end(tmp_path, undisturbed):
    expected, calls, seconds = undisturbed
    moments, twice = 50 if LONG else 3, []
    for i in range(moments):
        out, log = tmp_path / f"{i}", tmp_path / f"{i}.log"
        process = start(out, "--log", log)
        seen = 1 + round(0.85 * calls * i / moments)  # from the first call on to well before the last
        wait_for(lambda: num_lines(log) >= seen, process)  # noqa: B023
        time.sleep(i / moments * 0.5 * seconds / calls)  # and anywhere within a call
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
        assert seen <= num_lines(log) < calls, "it was killed in training"
        complete(out, "--log", log)
        assert lasting(out) == expected
        twice.append(num_lines(log) / calls - 1)
    print(f"computed twice: {sum(twice) / moments:.1%} of a search on average, {max(twice):.1%} at most")
    assert max(twice) * calls < 2.5  # each call is followed by a checkpoint: what is lost is one call, or two


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_says_so_ends_soon_and_goes_on(tmp_path, undisturbed, number):
    expected, calls, _ = undisturbed
    log = tmp_path / "log"
    process = start(tmp_path / "out", "--log", log)
    wait_for(lambda: num_lines(log), process)
    process.send_signal(number)
    begin = time.monotonic()
    code, errors = finish(process)
    assert code == 128 + number
    assert errors.strip() == "stopping; the same command goes on from here"
    assert time.monotonic() - begin < 8
    assert num_lines(log) < calls, "it was stopped in training"
    complete(tmp_path / "out", "--log", log)
    assert lasting(tmp_path / "out") == expected
    assert num_lines(log) <= calls + 1  # it had put down where it was


def test_killed_just_before_each_file_gets_its_name(tmp_path, undisturbed):
    codes = []
    for number in range(1, 40 if LONG else 8):
        code, _ = finish(start(tmp_path, "--kill-at-rename", number, "--num-epochs", 1000))
        codes.append(code)
        if code == 0:
            break
    assert -signal.SIGKILL in codes
    complete(tmp_path)
    assert lasting(tmp_path) == undisturbed[0]


def test_killed_in_the_refit_it_goes_on_from_its_checkpoint(tmp_path, undisturbed):
    log = tmp_path / "log"
    assert finish(start(tmp_path / "out", "--kill-in-refit", 12, "--log", log))[0] == -signal.SIGKILL
    complete(tmp_path / "out", "--log", log)
    assert lasting(tmp_path / "out") == undisturbed[0]
    calls = log.with_suffix(".refit").read_text().splitlines()
    assert len(calls) == 20 + 1  # of 50 epochs each; the twelfth was done when it died, and not yet kept
    assert not list((tmp_path / "out").rglob("*.checkpoint"))


@pytest.mark.parametrize("number", [1, 5, 40] if LONG else [20])
def test_killed_in_the_middle_of_a_record_of_the_journal(tmp_path, undisturbed, number):
    assert finish(start(tmp_path, "--kill-at-record", number))[0] == -signal.SIGKILL
    complete(tmp_path)
    assert lasting(tmp_path) == undisturbed[0]


def test_trials_at_own_widths_are_kept_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # on several, they would be done at the same time
    flags = ("--widths", "exact", "--num-trials", 3)
    complete(tmp_path / "undisturbed", *flags)

    def kept():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("brackets/*/*-1000.npz")}

    process = start(tmp_path / "out", *flags)
    wait_for(kept, process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    before = kept()
    assert 1 <= len(before) < 3, "it was killed between two trials"
    complete(tmp_path / "out", *flags)
    after = kept()
    assert len(after) == 3
    assert {path: after[path] for path in before} == before
    assert lasting(tmp_path / "out") == lasting(tmp_path / "undisturbed")


def test_several_processes_share_a_search_and_make_up_for_one_that_dies(tmp_path):
    trials, workers = (40, 4) if LONG else (18, 3)
    complete(tmp_path / "alone", "--num-trials", trials, "--log", tmp_path / "alone.log")
    alone = num_lines(tmp_path / "alone.log")
    logs = [tmp_path / f"{i}.log" for i in range(workers)]
    processes = [start(tmp_path / "out", "--num-trials", trials, "--log", log) for log in logs]
    wait_for(lambda: num_lines(logs[0]), processes[0])
    processes[0].kill()
    codes = [finish(process)[0] for process in processes]
    assert codes == [-signal.SIGKILL] + [0] * (workers - 1)
    assert 0 < num_lines(logs[0]) < alone, "it was killed in training"
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").read_text().splitlines()))
    assert len({row["learning_rate"] for row in rows}) == trials
    assert lasting(tmp_path / "out") == lasting(tmp_path / "alone")
    together = sum(num_lines(log) for log in logs)
    assert alone <= together <= 1.4 * alone  # at most the killed one's part is trained again


def test_processes_with_other_numbers_of_trials_share_a_folder(tmp_path):
    numbers = (3, 5, 8, 12)
    flags = ("--members-per-program", 3, "--num-epochs", 200, "--page")
    processes = [start(tmp_path / "out", "--num-trials", n, *flags) for n in numbers]
    for number, process in zip(numbers, processes, strict=True):
        code, errors = finish(process)
        assert code == 0, (number, errors)
        lines = errors.splitlines()
        assert not lines or (len(lines) == 1 and lines[0].endswith("meanwhile: its results stay"))
    found = results.load_results(tmp_path / "out", regression.STUDY)
    assert len(found.trials.rows) == found.record["config"]["num_trials"] == numbers[-1]
    complete(tmp_path / "out", "--num-trials", 5, *flags)
    assert (
        len(results.load_results(tmp_path / "out", regression.STUDY).trials.rows) == 5
    )  # who asks for fewer gets fewer


DEEP = ("--study", "deep", "--num-trials", 12, "--num-epochs", 1000, "--members-per-program", 18)


@pytest.fixture(scope="module")
def deep_alone(tmp_path_factory):
    """What one process leaves of a search over static hyperparameters, with randomness and state in training."""
    folder = tmp_path_factory.mktemp("deep")
    complete(folder / "out", *DEEP, "--log", folder / "log")
    record, *_ = lasting(folder / "out")
    assert record["num_programs"] == 3
    return lasting(folder / "out"), num_lines(folder / "log")


def test_a_search_with_several_programs_is_the_same_with_three_processes(tmp_path, deep_alone):
    expected, alone = deep_alone
    logs = [tmp_path / f"{i}.log" for i in range(3)]
    processes = [start(tmp_path / "out", *DEEP, "--log", log) for log in logs]
    for process in processes:
        code, errors = finish(process)
        assert code == 0, errors
    assert lasting(tmp_path / "out") == expected
    assert sum(map(num_lines, logs)) == alone  # no job is trained twice


def test_a_search_with_several_programs_goes_on_after_each_death_to_the_same_end(tmp_path, deep_alone):
    expected, calls = deep_alone
    out, log = tmp_path / "out", tmp_path / "log"
    for share in (0.1, 0.45, 0.8):
        process = start(out, *DEEP, "--log", log)
        wait_for(lambda: num_lines(log) >= share * calls, process)  # noqa: B023
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
        assert num_lines(log) < calls, "it was killed in training"
    complete(out, *DEEP, "--log", log)
    assert lasting(out) == expected
    assert num_lines(log) <= calls + 3 * 2


def test_a_journal_cut_anywhere_keeps_its_whole_records_and_takes_more(tmp_path):
    journal = tmp_path / "journal.log"
    opened = search.open_storage(journal, toy.STUDY, sampler="random", seed=0)
    for _ in range(5):
        opened.tell(opened.ask(), 1.0)
    content = journal.read_bytes()
    first = content.index(b"\n") + 1
    places = random.Random(0)
    for _ in range(100):
        cut = places.randrange(first, len(content))
        journal.write_bytes(content[:cut])
        again = search.open_storage(journal, toy.STUDY, sampler="random", seed=0)
        whole = content[:cut].count(b"\n")
        assert journal.read_bytes().splitlines()[:whole] == content.splitlines()[:whole]
        again.ask()
        assert all(json.loads(line) for line in journal.read_bytes().splitlines())
        assert len(search.open_storage(journal, toy.STUDY, sampler="random", seed=0).trials) == len(again.trials)


def test_a_damaged_line_within_a_journal_is_named_and_the_file_left_alone(tmp_path):
    journal = tmp_path / "journal.log"
    opened = search.open_storage(journal, toy.STUDY, sampler="random", seed=0)
    opened.tell(opened.ask(), 1.0)
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:10] + b"\n"
    journal.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="journal.log, line 3 is damaged"):
        search.open_storage(journal, toy.STUDY, sampler="random", seed=0)
    assert journal.read_bytes() == b"".join(lines)


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, undisturbed):
    code, errors = finish(start(tmp_path, "--largest-file", 20_000))  # writing more fails, as on a full disk
    assert code == 2
    one_line(errors)
    assert not list(tmp_path.rglob(".*.npz.*"))  # no half file
    complete(tmp_path)
    assert lasting(tmp_path) == undisturbed[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cant_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    code, errors = finish(start(tmp_path / "out"))
    assert code == 2
    one_line(errors)


def test_a_folder_that_vanishes_is_told_in_one_line_or_made_again(tmp_path, undisturbed):
    code, errors = finish(start(tmp_path / "out", "--remove-folder"))
    assert code in (0, 2)
    if code:
        one_line(errors)
    complete(tmp_path / "out")
    assert lasting(tmp_path / "out") == undisturbed[0]


def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path):
    code, _ = finish(start(tmp_path, "--kill-at-rename", 10))  # of a job's nineteen checkpoints
    assert code == -signal.SIGKILL
    (left,) = tmp_path.glob("brackets/*/*.checkpoint")
    left.write_bytes(left.read_bytes()[:-50])
    code, errors = finish(start(tmp_path))
    assert code == 2
    one_line(errors)
    assert left.name in errors
    assert "remove it and run the same command again" in errors
