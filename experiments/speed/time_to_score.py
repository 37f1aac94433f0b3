"""How soon a search finds what it finds: ours and the peers', whole, one after the other, for several seeds.

It is `benchmark.py --time-to-score`, which says what is measured; what a side does says score.py.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from speed import forms, peers, score
from speed.peers import Work


def search_work(name: str, seed: int, options: argparse.Namespace) -> tuple[Work, dict[str, int]]:
    """A study's data, folds and first draws for a seed -> (work, each side's trials)."""
    import homework

    from hw1jax import space

    asked = forms.study_of(name)
    data = forms.data_of(asked, options.data_dir, synthetic=options.synthetic)
    few = {"regression": 60, "fashion_mlp": 3, "fashion_cnn": 2} if options.quick else {name: asked.num_epochs}
    halving_trials = homework.HALVING_TRIALS | options.halving_trials
    num_trials, halving = (4, 6) if options.quick else (asked.num_trials, halving_trials[name])
    most = max(num_trials, halving, 60)  # of which two thirds are no RMSprop's
    count = 3000 if options.quick else None
    work = forms.order_work(
        name,
        data.x_train[:count],
        data.y_train[:count],
        [space.draw_to_json(space.random_draw(asked.space, seed, n)) for n in range(most)],
        num_folds=asked.num_folds,
        num_epochs=few[name],
        batch_size=asked.batch_size,
        seed=seed,
    )
    return work, dict.fromkeys(score.SIDES, num_trials) | {score.HALVING: halving}


def search_study(name: str, seed: int, options: argparse.Namespace, file: Path) -> list[dict[str, Any]]:
    """What each side finds with a seed, and when."""
    work, trials = search_work(name, seed, options)
    peers.save_work(file, work)
    sides = [side for side in score.list_sides(name) if not (options.no_peers and side in score.PEERS)]
    rows = []
    for side in sides:
        forms.say(name, f"seed {seed}", side)
        python = options.peers_python if side in score.PEERS else sys.executable
        found = score.run_side(file, side, seed=seed, trials=trials[side], python=python)
        row = {"side": side, "seed": seed, "trials": trials[side], "versions": found.get("versions", {})}
        try:
            traced = score.trace(found["lines"]) if "lines" in found else None
        except ValueError as error:
            found, traced = {"skipped": f"failed: {error}"}, None
        if traced:
            row |= {"seconds": traced.seconds.tolist(), "loss": traced.loss.tolist(), "epochs": traced.epochs}
        else:
            row["skipped"] = found["skipped"]
        rows.append(row)
    return rows


def trace_of(row: dict[str, Any]) -> score.Trace:
    return score.Trace(np.array(row["seconds"]), np.array(row["loss"]), row["epochs"])


def reached(rows: list[dict[str, Any]], ours: str, peer: str) -> dict[str, float]:
    """Medians over the seeds of when ours and the peer reach the peer's final loss; infinite where half never do."""
    by_seed = {(row["side"], row["seed"]): trace_of(row) for row in rows if "skipped" not in row}
    seeds = [seed for side, seed in by_seed if side == peer and (ours, seed) in by_seed]
    goals = [by_seed[peer, seed].loss[-1] for seed in seeds]
    if not seeds:
        return {}
    own = [by_seed[ours, seed].until(goal) for seed, goal in zip(seeds, goals, strict=True)]
    its = [by_seed[peer, seed].until(goal) for seed, goal in zip(seeds, goals, strict=True)]
    total = [float(by_seed[peer, seed].seconds[-1]) for seed in seeds]
    return {
        "seconds": median(own),
        "peer_seconds": median(its),
        "share": median(a / b for a, b in zip(own, its, strict=True)),
        "share_of_all": median(a / b for a, b in zip(own, total, strict=True)),
        "reached": sum(map(math.isfinite, own)),
        "seeds": len(seeds),
    }


def score_table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """A study's searches as lines of markdown, and when ours have found what a peer finds."""
    lines = [
        "",
        f"### {name}",
        "",
        "| | trials | trial-epochs | validation loss at the end (each seed) | s in all |",
        "|---|--:|--:|--:|--:|",
    ]
    for side in score.SIDES:
        done = [row for row in rows if row["side"] == side and "skipped" not in row]
        if not done:
            continue
        losses, seconds = ([row[what][-1] for row in done] for what in ("loss", "seconds"))
        shown = f"**{side}**" if side not in score.PEERS else side
        trials = "-" if side == score.SKLEARN else done[0]["trials"]
        lines.append(
            f"| {shown} | {trials} | {median(row['epochs'] for row in done):,.0f} | {median(losses):.4g} "
            f"({', '.join(f'{loss:.4g}' for loss in losses)}) | {median(seconds):.1f} |"
        )
    lines += [
        "",
        "| final loss of | reached by | after s | by the peer itself | share of that | of its whole search | seeds |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for peer in score.PEERS:
        for ours in (side for side in score.SIDES if side not in score.PEERS):
            if found := reached(rows, ours, peer):
                after, by_peer, *shares = (
                    f"{found[what]:.3g}" if math.isfinite(found[what]) else "never"
                    for what in ("seconds", "peer_seconds", "share", "share_of_all")
                )
                seeds = f"{found['reached']} of {found['seeds']}"
                lines.append(f"| {peer} | **{ours}** | {after} | {by_peer} | {' | '.join(shares)} | {seeds} |")
    skipped = {row["side"]: row["skipped"] for row in rows if "skipped" in row}
    return [*lines, "", *(f"- skipped: {side}: {reason}" for side, reason in skipped.items())]


def score_report(results: dict[str, Any]) -> str:
    machine = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"{machine['date']}, {machine['device']}, {machine['cores']} cores, Python {machine['python']}, {versions}; "
        f"seeds {', '.join(map(str, results['settings']['seeds']))}; medians of them. Seconds since the process "
        "started: imports, reading the data and compiling (with an empty cache) are in.",
    ]
    for name, result in results["studies"].items():
        lines += (
            score_table(name, result["rows"]) if "rows" in result else ["", f"- skipped: {name}: {result['skipped']}"]
        )
    return "\n".join(lines).rstrip() + "\n"


def draw_scores(results: dict[str, Any], out: Path) -> None:
    """time_to_score.png: a panel a study, a line a side and seed."""
    from hw1jax import storage
    from hw1jax.report import plots

    studies = {
        name: done
        for name, result in results["studies"].items()
        if (done := [row for row in result.get("rows", []) if "skipped" not in row])
    }
    if not studies:
        return
    looks = {
        score.OURS: {"color": plots.BLUE, "linestyle": "--"},
        score.HALVING: {"color": plots.BLUE},
        score.OPTUNA: {"color": plots.ORANGE},
        score.SKLEARN: {"color": plots.GREEN, "linestyle": "-."},
    }
    with plots.style():
        figure, axes = plots.figure(len(studies), height=2.7 * len(studies))
        for ax, (name, rows) in zip(axes[:, 0], studies.items(), strict=True):
            for side, look in looks.items():
                for i, row in enumerate(row for row in rows if row["side"] == side):
                    label = None if i else side
                    ax.step(row["seconds"], row["loss"], where="post", label=label, **look)
                    ax.plot(row["seconds"][-1], row["loss"][-1], ".", color=look["color"])
            ax.set_xscale("log")
            ax.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
            ax.set(title=name, xlabel="seconds since the process started", ylabel="best validation loss so far")
            last = [row["loss"][-1] for row in rows]
            room = max(last) - min(last) or 0.1 * min(last)
            ax.set_ylim(min(last) - 0.1 * room, max(last) + 1.5 * room)  # beginnings, far above, say little
        # Once, above: within a panel it would hide lines.
        lines = {line.get_label(): line for ax in axes.flat for line in ax.get_legend_handles_labels()[0]}
        figure.legend(list(lines.values()), list(lines), loc="outside upper left", ncols=2)
        storage.write_bytes(out / "time_to_score.png", plots.png(figure))


def measure(options: argparse.Namespace) -> None:
    """Searches, and writes after each seed of each study."""
    from hw1jax import record, storage

    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
    machine = record.describe()
    versions = dict(machine["packages"])
    results = {"environment": machine, "settings": settings, "versions": versions, "studies": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.studies:
            results["studies"][name] = {"rows": []}
            for seed in options.seeds:
                try:
                    rows = search_study(name, seed, options, Path(folder, f"{name}.npz"))
                except ValueError as error:  # no data: the other studies don't need them
                    results["studies"][name] = {"skipped": str(error)}
                    break
                results["studies"][name]["rows"] += rows
                for row in rows:
                    versions |= row["versions"]
                storage.write_json(options.out / "time_to_score.json", results)
                storage.write_bytes(options.out / "time_to_score.md", score_report(results).encode())
                draw_scores(results, options.out)
    print(score_report(results))
