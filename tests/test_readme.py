"""The README says what its scripts have written, and its commands are those that continuous integration runs."""

import re
import subprocess

import pytest
import readme

TEXT = (readme.ROOT / "README.md").read_text()


def test_tables_are_what_the_script_makes_of_the_kept_results():
    assert readme.fill(TEXT) == TEXT


@pytest.mark.parametrize("name", ["main", "test"])
def test_each_command_is_one_line_that_sets_up_everything(name):
    command = re.search(rf"<!-- command: {name} -->\n```bash\n(.*)\n```", TEXT).group(1)
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_every_file_that_it_names_exists():
    for path in re.findall(r"`((?:experiments|hw1jax|tests|\.ci)/[\w./]+)`", TEXT):
        assert (readme.ROOT / path).exists(), path


def test_no_line_names_a_path_of_a_machine():
    tracked = subprocess.run(["git", "grep", "-lE", r"/(work|root|home)/[a-z]"], cwd=readme.ROOT, capture_output=True)
    assert tracked.stdout.decode().split() in ([], ["tests/test_readme.py"])
