"""The speed of the three studies, ours and the peers', at equal work, measured in one run on one machine.

    python experiments/benchmark.py [--studies STUDIES] [--peers-python PYTHON] [--cold STUDIES] [--help]
    python experiments/benchmark.py --time-to-score [--studies STUDIES] [--seeds SEEDS] [--halving-trials N ..]
    python experiments/benchmark.py --growth [--studies STUDIES]
    python experiments/benchmark.py --predict [--studies STUDIES]

Equal work: one file a study (`peers.Work`) with the samples, the folds, the order of all minibatches and the first
draws of the search with seed 0; everybody computes in float32. The unit is the microsecond per training sample.

In the clock: making and gathering the minibatches (whole epochs of all members, warm), forward, backward, optimizer,
each fold's validation after each epoch, and our transfer of the losses to the host. Not in it: reading the data,
initial parameters and compiling (`compile` in the table: the first two rounds less two warm ones). Every form
(speed/forms.py) and every peer (speed/peers.py) runs in processes of its own, on all cores; a repeat lasts at least
--seconds and counts whole rounds; the table has the median of the repeats and their range. 'search' is that median
times the samples of the study's full search: scaled, not run. With --cold, the full searches of these studies are run
as well, from process start to results, with an empty compilation cache and with the filled one. The images of the
convolutional study are the first 12,000.

Rates count the floating-point operations of loss and gradient at each trial's own widths, by XLA's count; validation
and the optimizer are left out, so the share of the machine's matrix-product peak is a lower bound. 'peak MB' is the
resident memory of all processes, on an accelerator the host's alone. 'loss' is the validation loss after the whole work
(regression: the full search; images: 2 epochs), mean over the members that no one's run diverged in, and that of the
best trial; initial parameters differ between hw1jax and torch. scikit-learn leaves out the RMSprop trials: its rate and
share are those of another mix.

With --time-to-score it measures something else: whole searches, ours at the study's own settings and with halving and
averaged parameters (`homework.HALVING`), and those of peers that halve as well (speed/score.py says how,
speed/time_to_score.py puts them together), one after the other for each seed: the best validation loss against the time
since the process started. It writes time_to_score.md, .json and .png. With --growth it measures short searches of more
and more trials and of more folds (speed/growth.py), and writes search_growth.md and .json. With --predict it runs
nothing, and says what an accelerator would be asked for (speed/prediction.py); it writes prediction.md and .json.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from speed import forms, growth, peers, prediction, time_to_score
from speed.peers import Work

STUDIES = peers.STUDIES
SAMPLES = {"regression": 100, "fashion_mlp": 60_000, "fashion_cnn": 12_000}  # of the work, the first ones
EPOCHS = {"regression": 1000, "fashion_mlp": 2, "fashion_cnn": 2}  # of the work
GROWTH = (10, 25, 100, 333, 1000)  # trials of 3 folds


# The work. Importing an experiment imports JAX, so it waits until it is needed.


def make_work(name: str, data_dir: Path | None, *, quick: bool, synthetic: bool = False) -> tuple[Work, int]:
    """A study's first draws on its data, or on noise -> (work, training samples of the study's full search)."""
    from hw1jax import space

    asked = forms.study_of(name)
    data = forms.data_of(asked, data_dir, synthetic=synthetic)
    num_trials = 3 if quick else asked.num_trials
    draws = [space.random_draw(asked.space, forms.SEED, n) for n in range(num_trials)]
    count = min(SAMPLES[name], 3000 if quick else SAMPLES[name])
    epochs = min(EPOCHS[name], 100 if quick else EPOCHS[name])
    work = forms.order_work(
        name,
        data.x_train[:count],
        data.y_train[:count],
        [space.draw_to_json(draw) for draw in draws],
        num_folds=asked.num_folds,
        num_epochs=epochs,
        batch_size=asked.batch_size,
        search_epochs=asked.num_epochs * len(data.x_train) // count,
    )
    return work, asked.num_trials * asked.num_epochs * (asked.num_folds - 1) * len(data.x_train)


# The parent: starts processes, one at a time, and puts together what they print.


def run_form(arguments: Sequence[str], **environment_variables: str) -> dict[str, Any]:
    """forms.py in a fresh process without a compilation cache -> the JSON of its last line, or why it is missing."""
    found_here = os.pathsep.join(sys.path)  # it finds what this process finds
    variables = os.environ | {"PYTHONPATH": found_here, "JAX_ENABLE_COMPILATION_CACHE": "false"} | environment_variables
    command = [sys.executable, "-m", forms.__name__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        return {"skipped": f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def in_short(row: dict[str, Any]) -> str:
    """A row of the table for a person who waits for it."""
    return f"  skipped: {row['skipped']}" if "skipped" in row else f"  {speed(row):.3g} µs a sample"


def measure_study(name: str, options: argparse.Namespace, folder: Path, peak: float) -> dict[str, Any]:
    """Everything about one study, as benchmark.json holds it."""
    work, search_samples = make_work(name, options.data_dir, quick=options.quick, synthetic=options.synthetic)
    file, clock = folder / f"{name}.npz", {"repeats": options.repeats, "seconds": options.seconds}
    peers.save_work(file, work)
    flags = ["--work", str(file), "--repeats", str(options.repeats), "--seconds", str(options.seconds)]
    rows = []
    searched = [] if name == "regression" else [forms.SEARCH]  # which trains all in one program as it is
    lax = [forms.LAX] if name == "fashion_cnn" and options.platform != "cpu" else []
    for form in (forms.ONE_FOLD, forms.FOLDS, forms.ALL, *searched, *lax):
        forms.say(name, form)
        rows.append({"ours": True, "name": form, **run_form(["--form", form, *flags])})
        forms.say(in_short(rows[-1]))
    for peer in [] if options.no_peers else peers.list_peers(name):
        forms.say(name, peer)
        rows.append({"ours": False, "name": peer, **peers.run_peer(file, peer, python=options.peers_python, **clock)})
        forms.say(in_short(rows[-1]))

    forms.say(name, "quality")
    ours = next((row for row in reversed(rows) if row["ours"] and "skipped" not in row), None)
    eager = min((r for r in rows if r["name"].startswith("torch eager")), key=speed, default=None)
    if ours:
        ours["final_val_loss"] = run_form(["--form", ours["name"], "--full", *flags]).get("final_val_loss")
    if eager and "skipped" not in eager:
        full = peers.run_peer(file, eager["name"], python=options.peers_python, full=True)
        eager["final_val_loss"] = full.get("final_val_loss")

    operations = forms.operations_per_sample(work)
    for row in (row for row in rows if "skipped" not in row):
        row["search_seconds"] = 1e-6 * speed(row) * search_samples
        row["gflops"] = 1e-3 * operations / speed(row)
        row["share_of_peak"] = row["gflops"] / peak
    compare_quality([row for row in rows if row.get("final_val_loss")])
    result = {
        "samples": len(work.x),
        "epochs": work.train_order.shape[1],
        "trials": work.trials,
        "search_samples": search_samples,
        "operations_per_sample": operations,
        "rows": rows,
    }
    strongest = min((row for row in rows if not row["ours"]), key=speed, default=None)
    result["strongest_peer"] = strongest["name"] if strongest and "skipped" not in strongest else None
    accelerator = options.platform != "cpu"
    if name == "regression" or accelerator:
        a_step = (work.train_order[:, 0] >= 0).sum() / (work.train_order[:, 0] >= 0).any(2).sum()  # samples
        result["growth"] = []
        growth = (1, *GROWTH) if accelerator else GROWTH
        for n in growth[: 2 if options.quick else None]:
            forms.say(name, f"growth, {3 * n} members")
            row = {"members": 3 * n, **run_form(["--form", forms.ALL, "--trials", str(n), *flags])}
            result["growth"].append(row if "skipped" in row else row | {"us_per_member_step": a_step * speed(row)})
        result["devices"] = []
        for n in sorted({1, 2, 4, 8, options.devices} & set(range(1, options.devices + 1))):
            forms.say(name, f"{n} devices")
            row = {"devices": n, **run_form(["--form", forms.ALL, "--num-devices", str(n), *flags])}
            result["devices"].append(row)
    if name == "regression":
        forms.say(name, "progress bar")
        # FORCE_COLOR: the bar is drawn though there is no terminal.
        result["progress"] = run_form(["--form", "progress bar", *flags], FORCE_COLOR="1")
    if name in options.cold:
        result["cold"] = {cache: cold_run(name, options, folder, cache) for cache in ("empty cache", "filled cache")}
    return result


def compare_quality(rows: list[dict[str, Any]]) -> None:
    """Adds to each row, of those whose final losses [trial][fold] are known, their mean and the best trial's."""
    losses = np.array([row["final_val_loss"] for row in rows], float)  # [row, trial, fold], NaN where diverged
    everywhere = np.isfinite(losses).all(axis=0)
    for row, own in zip(rows, losses, strict=True):
        row["mean_val_loss"] = forms.finite(own[everywhere].mean()) if everywhere.any() else None
        row["best_val_loss"] = forms.finite(np.nan_to_num(own.mean(axis=1), nan=np.inf).min())
        row["failed_members"] = int((~np.isfinite(own)).sum())


def cold_run(name: str, options: argparse.Namespace, folder: Path, cache: str) -> dict[str, Any]:
    """The experiment itself in a fresh process; its compilation cache is shared by the runs of a study."""
    forms.say(name, f"cold run, {cache}")
    out, script = folder / f"{name} {cache}", Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, str(script), "--out", str(out), *(["--quick"] if options.quick else [])]
    command += ["--data-dir", str(options.data_dir)] if options.data_dir and name != "regression" else []
    variables = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / f"{name} compiled")}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        return {"skipped": f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    return json.loads((out / "results.json").read_text())["timing"] | {"process_seconds": time.perf_counter() - start}


def speed(row: dict[str, Any]) -> float:
    """Microseconds per sample, the median; infinite where nothing was measured."""
    return median(row["us_per_sample"]) if row.get("us_per_sample") else math.inf


# What people read.


def table(result: dict[str, Any]) -> list[str]:
    """A study's rows as lines of markdown, what was skipped below."""
    reference = next((speed(row) for row in result["rows"] if row["name"] == result["strongest_peer"]), None)
    lines = [
        "| | µs/sample (range) | compile s | search s | times strongest peer | GFLOP/s | of peak | peak MB | loss |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in (row for row in result["rows"] if "skipped" not in row):
        name = f"**{row['name']}**" if row["ours"] else row["name"]
        low, high = min(row["us_per_sample"]), max(row["us_per_sample"])
        losses = [row.get("mean_val_loss"), row.get("best_val_loss")]
        ratio = f"{reference / speed(row):.3g}" if reference else "-"
        loss = "{:.4g}, best {:.4g}".format(*losses) if None not in losses else "-"
        lines.append(
            f"| {name} | {speed(row):.3g} ({low:.3g}-{high:.3g}) | {row['compile_seconds']:.1f} "
            f"| {row['search_seconds']:.3g} | {ratio} | {row['gflops']:.3g} | {row['share_of_peak']:.0%} "
            f"| {row['peak_rss_mb'] or math.nan:.0f} | {loss} |"
        )
    lines += ["", *(f"- skipped: {row['name']}: {row['skipped']}" for row in result["rows"] if "skipped" in row)]
    for cache, cold in result.get("cold", {}).items():
        seconds = cold.get("total_seconds", math.nan)
        line = f"- from process start to results, {cache}: {seconds:.1f} s{cold.get('skipped', '')}"
        if reference:
            strongest = next(row for row in result["rows"] if row["name"] == result["strongest_peer"])
            peers_seconds = strongest["compile_seconds"] + strongest["search_seconds"]
            line += f", {peers_seconds / seconds:.3g} times the strongest peer's compiling and (scaled) search"
        lines.append(line)
    if "ratio" in result.get("progress", {}):
        lines.append(f"- training time with the progress bar to that without: {result['progress']['ratio']:.3f}")
    return lines


def growth_table(growth: list[dict[str, Any]]) -> list[str]:
    lines = ["", "| members in one program | µs per member-step | peak MB |", "|--:|--:|--:|"]
    for row in (row for row in growth if "skipped" not in row):
        lines.append(f"| {row['members']:,} | {row['us_per_member_step']:.3g} | {row['peak_rss_mb'] or math.nan:.0f} |")
    return [*lines, *(f"- skipped: {row['members']} members: {row['skipped']}" for row in growth if "skipped" in row)]


def devices_table(devices: list[dict[str, Any]]) -> list[str]:
    """What more devices bring; the first row is one device."""
    lines = ["", "| devices | µs/sample | speed-up |", "|--:|--:|--:|"]
    for row in (row for row in devices if "skipped" not in row):
        lines.append(f"| {row['devices']} | {speed(row):.3g} | {speed(devices[0]) / speed(row):.2f} |")
    return [*lines, *(f"- skipped: {row['devices']} devices: {row['skipped']}" for row in devices if "skipped" in row)]


def to_markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    machine, peak = results["environment"], results["peak"]["gflops"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"{machine['date']}, {machine['device']}, {machine['cores']} cores, Python {machine['python']}, {versions}; "
        f"float32, {results['settings']['repeats']} repeats of at least {results['settings']['seconds']:g} s; "
        f"matrix products reach {peak:.0f} GFLOP/s here.",
    ]
    for name, result in results["studies"].items():
        if "skipped" in result:
            lines += ["", f"- skipped: {name}: {result['skipped']}"]
            continue
        what = f"{len(result['trials'])} trials, {result['samples']:,} samples; loss after {result['epochs']} epochs"
        lines += ["", f"### {name} ({what})", "", *table(result)]
        if "growth" in result:
            lines += growth_table(result["growth"])
        if "devices" in result:
            lines += devices_table(result["devices"])
    return "\n".join(lines) + "\n"


def draw_figures(results: dict[str, Any], out: Path) -> None:
    """speed.png and growth.png."""
    from hw1jax import storage
    from hw1jax.report import plots

    studies = {
        name: result
        for name, result in results["studies"].items()
        if any("skipped" not in row for row in result.get("rows", []))
    }
    with plots.style():
        if studies:
            figure, axes = plots.figure(len(studies), height=2.7 * len(studies))
            for ax, (name, result) in zip(axes[:, 0], studies.items(), strict=True):
                done = [row for row in result["rows"] if "skipped" not in row]
                ours, others = ({r["name"]: speed(r) for r in done if r["ours"] is whose} for whose in (True, False))
                plots.speed_bars(ax, ours, others, title=name, label="µs per training sample, validation included")
            storage.write_bytes(out / "speed.png", plots.png(figure))
        growth = [row for row in studies.get("regression", {}).get("growth", []) if "skipped" not in row]
        if growth:
            figure, axes = plots.figure(height=2.6)
            members, times = (np.array([row[name] for row in growth]) for name in ("members", "us_per_member_step"))
            plots.scaling(axes[0, 0], members, times)
            storage.write_bytes(out / "growth.png", plots.png(figure))
        devices = [row for row in studies.get("regression", {}).get("devices", []) if "skipped" not in row]
        if len(devices) > 1:
            figure, axes = plots.figure(height=2.6)
            speeds = np.array([speed(row) for row in devices])
            plots.speed_up(axes[0, 0], np.array([row["devices"] for row in devices]), speeds[0] / speeds)
            storage.write_bytes(out / "devices.png", plots.png(figure))


def write(results: dict[str, Any], out: Path) -> None:
    """benchmark.json, benchmark.md and the figures."""
    from hw1jax import storage

    storage.write_json(out / "benchmark.json", results)
    storage.write_bytes(out / "benchmark.md", to_markdown(results).encode())
    draw_figures(results, out)


def benchmark(options: argparse.Namespace) -> None:
    """Measures, and writes after each study."""
    from hw1jax import record

    forms.say("matrix products")
    # One device with all cores' threads: a product alone doesn't spread over devices.
    peak = run_form(["--form", "matrix products"], JAX_NUM_CPU_DEVICES="1")
    if "skipped" in peak:
        raise ValueError(f"the matrix products {peak['skipped']}")
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
    machine = record.describe()
    options.platform, options.devices = machine["platform"], os.cpu_count()
    if options.platform != "cpu":
        options.devices = machine["num_devices"]
    results = {"environment": machine, "settings": settings, "peak": peak, "versions": {}, "studies": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.studies:
            try:
                result = measure_study(name, options, Path(folder), peak["gflops"])
            except ValueError as error:  # no data: the other studies don't need them
                result = {"skipped": str(error)}
            results["studies"][name] = result
            results["versions"] = machine["packages"] | results["versions"]
            for row in result.get("rows", []):
                results["versions"] |= row.get("versions", {})
            write(results, options.out)
    print(to_markdown(results))


def given_path(text: str) -> Path:
    """A path as a shell would take it, ~ included. (`hw1jax.cli` has one as well, but imports JAX.)"""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got nothing")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def given_trials(text: str) -> tuple[str, int]:
    """STUDY=N."""
    name, _, number = text.partition("=")
    if name not in STUDIES or not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a study and how many trials, such as regression=150")
    return name, int(number)


def parse(args: Sequence[str]) -> argparse.Namespace:
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], formatter_class=show)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES, help="which to measure")
    parser.add_argument("--out", type=given_path, default=Path("runs", "benchmark"), help="folder of the results")
    parser.add_argument("--data-dir", type=given_path, help="folder with the four Fashion-MNIST files")
    parser.add_argument("--synthetic", action="store_true", help="take noise for images, where there are none")
    parser.add_argument(
        "--peers-python",
        default=sys.executable,
        help="interpreter that has torch, scikit-learn and, for --time-to-score, optuna",
    )
    parser.add_argument("--no-peers", action="store_true", help="measure hw1jax alone")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each form")
    parser.add_argument("--seconds", type=float, default=4.0, help="the least duration of one")
    parser.add_argument(
        "--cold", nargs="+", choices=STUDIES, default=(), help="run these searches themselves as well, twice each"
    )
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--time-to-score", action="store_true", help="measure how soon whole searches find what they do")
    other.add_argument("--growth", action="store_true", help="measure searches of more and more trials and folds")
    other.add_argument("--predict", action="store_true", help="say what an accelerator would be asked for")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the searches of --time-to-score")
    parser.add_argument(
        "--halving-trials",
        nargs="+",
        type=given_trials,
        default=[],
        metavar="STUDY=N",
        help="trials of our searches with halving, instead of homework.HALVING_TRIALS",
    )
    parser.add_argument("--quick", action="store_true", help="a look at the tables: few trials and samples, one repeat")
    options = parser.parse_args(args)
    if options.repeats < 1 or options.seconds < 0:
        parser.error("--repeats must be at least 1 and --seconds at least 0")
    if min(options.seeds) < 0:
        parser.error("--seeds must be at least 0")
    options.halving_trials = dict(options.halving_trials)
    if options.quick:
        options.repeats, options.seconds = 1, min(options.seconds, 0.3)
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cores or 1))  # as the experiments do; children inherit it
    # This process only counts operations: an accelerator's memory is the children's.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        options.out.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring
        if options.predict:
            prediction.measure(options)
        elif options.growth:
            growth.measure(options, run_form)
        elif options.time_to_score:
            time_to_score.measure(options)
        else:
            benchmark(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
