"""README and docs show the scripts' output; their commands are those of continuous integration."""

import re
import subprocess

import pytest
import readme
import regression
from PIL import Image

from hw1jax import cli

TEXT = (readme.ROOT / "README.md").read_text()
PAGES = {page: page.read_text() for page in readme.PAGES}


@pytest.fixture(autouse=True)
def no_help(monkeypatch):
    """What `--help` prints takes a process, and another version of tyro may draw its boxes in another way."""
    monkeypatch.setattr(readme, "help_text", lambda: "")


def without_help(text):
    before, _, rest = text.partition("<!-- help -->")
    return before + rest.partition("<!-- end -->")[2]


@pytest.mark.parametrize("source", ["kept", "none"])
def test_tables_are_what_the_script_makes_of_the_kept_results(source, tmp_path, monkeypatch):
    """Without results the page stays as it is."""
    if source == "none":
        monkeypatch.setattr(readme, "RESULTS", tmp_path)
    for page, text in PAGES.items():
        assert without_help(readme.fill(text, page)) == without_help(text)


def test_the_help_that_it_shows_has_every_flag():
    (shown,) = [text.partition("<!-- help -->")[2] for text in PAGES.values() if "<!-- help -->" in text]
    for flag in cli.flag_names(regression.STUDY).values():
        assert f"--{flag}" in shown.partition("<!-- end -->")[0]


def test_figures_are_kept_as_they_are_shown_in_fewer_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "RESULTS", tmp_path / "results")
    source = tmp_path / "runs" / "benchmark" / "speed.png"
    source.parent.mkdir(parents=True)
    pixels = Image.effect_noise((100, 100), 50).convert("RGBA")
    pixels.save(source)
    readme.collect(tmp_path / "runs")
    assert [path.name for path in readme.RESULTS.iterdir()] == ["benchmark_speed.png"]
    found = readme.blocks(readme.ROOT / "README.md")
    assert "speed figure" in found and "figures" not in found
    kept = readme.RESULTS / "benchmark_speed.png"
    assert kept.stat().st_size < source.stat().st_size
    with Image.open(kept) as image:
        assert image.size == pixels.size


def test_images_are_there_and_small_and_say_what_they_show():
    paths = set()
    for page, text in PAGES.items():
        shown = re.findall(r'<img src="([^"]+)" alt="[^"]{20,}"|!\[[^\]]{20,}\]\(([^)]+)\)', text)
        assert len(shown) == text.count("<img ") + text.count("![")
        paths |= {(page.parent / (one or other)).resolve() for one, other in shown}
    assert paths == set(readme.RESULTS.glob("*.png"))
    assert sum(path.stat().st_size for path in paths) < 300_000


@pytest.mark.parametrize("name", ["main", "test"])
def test_each_command_is_one_line_that_sets_up_everything(name):
    command = re.search(rf"<!-- command: {name} -->\n```bash\n(.*)\n```", TEXT).group(1)
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_every_file_that_it_names_exists():
    for text in PAGES.values():
        for path in re.findall(r"`((?:experiments|hw1jax|tests|\.ci)/[\w./]+)`", text):
            assert (readme.ROOT / path).exists(), path


def test_no_line_names_a_path_of_a_machine():
    tracked = subprocess.run(["git", "grep", "-lE", r"/(work|root|home)/[a-z]"], cwd=readme.ROOT, capture_output=True)
    assert tracked.stdout.decode().split() in ([], ["tests/test_readme.py"])
