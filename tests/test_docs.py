"""The site builds without warnings, its links are valid, and the code on its pages runs."""

import re
import subprocess
import sys

import pytest
import readme
from reproduce import BEYOND, STUDIES

from hw1jax import cli

DOCS = readme.ROOT / "docs"


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(), re.DOTALL)


QUICK = {"README.md", "your-own-study.md", "cross-validate.md"}
CODE = [
    pytest.param(page, id=page.name, marks=() if page.name in QUICK else pytest.mark.slow)
    for page in readme.PAGES
    if blocks(page, "python")
]


@pytest.mark.parametrize("page", CODE)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # runs/ goes here
    shown = {"__name__": "shown"}
    for block in blocks(page, "python"):
        exec(block.replace("max_iter=81", "max_iter=3"), shown)  # in a second
    if page.name == "README.md":  # whose code runs its study as a script alone
        results = shown["hw"].run_study(shown["study"], num_trials=1, num_epochs=1, out="sine")
        assert set(results.best.params) == {"learning_rate", "weight_decay", "depth"}


def test_every_link_to_a_file_leads_to_one():
    for page in readme.PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_fits_two_screens():
    assert len((readme.ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_on_the_site_and_named_in_the_readme():
    listed = {name for block in blocks(DOCS / "index.md", r"\{toctree\}") for name in block.split("\n\n")[1].split()}
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert listed == pages
    named = set(re.findall(r"\(docs/([\w-]+)\.md\)", (readme.ROOT / "README.md").read_text()))
    assert named == pages - {"api"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert "cross_validate" in (tmp_path / "api.html").read_text()


def test_shell_blocks_use_flags_that_there_are():
    known = {flag for study in (*STUDIES.values(), *BEYOND.values()) for flag in cli.flag_names(study).values()}
    for page in readme.PAGES:
        for block in blocks(page, "bash"):
            for line in (line for line in block.splitlines() if "experiments/" in line and "benchmark" not in line):
                assert set(re.findall(r" --([\w-]+)", line)) <= known | {"beyond"}, f"{page.name}: {line}"
