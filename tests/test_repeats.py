"""Repeats: the folds again and again, each time with other initial parameters and minibatches."""

import re
from dataclasses import replace

import numpy as np
import pytest
import studies

from hw1jax import cli, run, run_study, write_report
from hw1jax.search import study as study_

ONE = {"num_devices": 1, "widths": "padded"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("repeats")


@pytest.fixture(scope="module")
def once(folder):
    return run_study(studies.TOY, out=folder / "once", **ONE)


@pytest.fixture(scope="module")
def thrice(folder):
    return run_study(studies.TOY, out=folder / "thrice", repeats=3, **ONE)


def test_repeat_0_is_the_search_without_repeats_bit_for_bit(once, thrice):
    for name in ("train_loss", "val_loss"):
        assert thrice.histories[name].shape[1] == 9
        np.testing.assert_array_equal(thrice.histories[name][:, :3], once.histories[name])


def test_repeats_are_trainings_on_the_same_folds_with_other_networks(thrice):
    config = study_.run_config(studies.TOY, repeats=3)
    folds = run.load(config).folds
    for i in range(3):
        for part in ("train", "validation"):
            np.testing.assert_array_equal(getattr(folds[i], part), getattr(folds[i + 3], part))
    members = thrice.histories["val_loss"][:, :, 0]
    assert len(np.unique(members)) == members.size


def test_fold_numbers_go_on_from_repeat_to_repeat(thrice, tmp_path):
    """As in a study whose own folds are written out three times; the refit comes after all of them."""
    folds = run.load(study_.run_config(studies.TOY)).folds
    own = run_study(replace(studies.TOY, folds=folds * 3), out=tmp_path, **ONE)
    assert (tmp_path / "trials.csv").read_bytes() == (thrice.folder / "trials.csv").read_bytes()
    np.testing.assert_array_equal(own.histories["refit_train_loss"], thrice.histories["refit_train_loss"])


def test_scores_are_means_over_folds_and_repeats(thrice):
    splits = np.stack([thrice.trials[f"split{i}_val_loss"] for i in range(9)], axis=1)
    np.testing.assert_array_equal(splits, thrice.histories["val_loss"][:, :, -1])
    np.testing.assert_allclose(thrice.trials["mean_val_loss"], splits.mean(axis=1), rtol=1e-12)
    assert len(thrice.model.folds) == 9
    assert "over 3 folds x 3 repeats" in repr(thrice)


def test_a_folder_records_repeats_only_if_there_are_any(once, thrice):
    assert "repeats" not in once.record["config"]
    assert (thrice.record["config"]["repeats"], thrice.record["config"]["num_folds"]) == (3, 3)
    with pytest.raises(ValueError, match="holds a search with repeats = 3, not None"):
        run_study(studies.TOY, out=thrice.folder, **ONE)


def test_the_page_shows_the_spread_over_folds_and_over_repeats(once, thrice):
    each = np.array([thrice.trials[f"split{i}_val_loss"][thrice.row] for i in range(9)]).reshape(3, 3)
    page = re.sub("<[^>]*>", "", write_report(thrice.folder, studies.TOY).read_text())
    for axis in (0, 1):
        assert f"{each.mean():.3f} ± {each.mean(axis=axis).std():.3f}" in page
    assert "between repeats" in page and "between repeats" not in write_report(once.folder, studies.TOY).read_text()


def test_the_flag_and_its_mistakes():
    assert cli.parse(studies.TOY, None, ["--repeats", "2"])[0].search.repeats == 2
    for settings, message in (
        ({"repeats": 0}, "repeats= must be at least 1, got 0"),
        ({"repeats": 1.5}, "repeats= must be a whole number, got 1.5"),
        ({"repeats": 3, "members_per_program": 8}, "members_per_program= must be at least a trial's 9 folds"),
    ):
        with pytest.raises(ValueError, match=message):
            study_.run_config(studies.TOY, **settings)
