"""What a search asks of an accelerator, read off its program as it is lowered for one. Nothing is run.

A program of the widest networks that a study can draw, laid out as an accelerator gets it, is lowered for CUDA: XLA
counts the arithmetic and the bytes of one step and one piece of the validation part, before it fuses operations, so
that the bytes are an upper bound. The memory is what the same program takes compiled here, the data aside. All three
grow with the members: two sizes of a program tell the others.
"""

import argparse
from typing import Any, NamedTuple

from speed import forms

PLATFORM, MEMORY = "cuda", 80e9  # the device, and its bytes
NUM_TRIALS = (10, 20)  # between which the growth is measured


class Cost(NamedTuple):
    """Of a program, all members together."""

    operations: float  # of a step and a piece
    moved: float  # bytes read and written, the same
    memory: float  # bytes, the data aside


def cost(asked: Any, data: Any, num_trials: int) -> tuple[Cost, int]:
    """(what a program with so many trials costs, its members)."""
    from hw1jax import layout, plan, population, space, study

    order, widest = study.order(asked), space.widest(asked.space)
    fixed, splits = space.fixed(asked.space, widest, widest=True), study.splits_of(asked, order.search, data)
    task, one = study.make_task(asked, fixed), study.one_trial(asked, widest)
    params, size = study.parameter_shapes(task, one), order.search.batch_size
    chosen = layout.choose(task.apply, params, data.x_train, one, size, "gpu")
    laid_out = population.Plan(num_trials, 1, num_trials, chosen)
    members = plan.make_population(asked, order.search, laid_out, data, splits, fixed)
    everyone = space.as_arrays(asked.space, [widest] * num_trials)
    counted: Any = population.lowered(members, everyone, PLATFORM).cost_analysis()
    memory = population.bytes_needed(members, everyone)
    return Cost(counted["flops"], counted["bytes accessed"], memory), num_trials * len(splits)


def predict(asked: Any, data: Any) -> dict[str, Any]:
    """What a member adds to a study's program, and how many members fill a device."""
    (few, first), (many, last) = (cost(asked, data, count) for count in NUM_TRIALS)
    a_member = Cost(*((b - a) / (last - first) for a, b in zip(few, many, strict=True)))
    return a_member._asdict() | {"most_members": int(first + (MEMORY - few.memory) / a_member.memory)}


def table(results: dict[str, Any]) -> list[str]:
    """Lines of markdown, a row a study."""
    lines = [
        f"| a member's step and piece | MFLOP | MB moved | MB of memory | members that fill {MEMORY / 1e9:.0f} GB |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, row in results.items():
        operations, moved, memory = (1e-6 * row[what] for what in Cost._fields)
        lines.append(f"| {name} | {operations:,.1f} | {moved:,.1f} | {memory:,.2f} | {row['most_members']:,} |")
    return lines


def measure(options: argparse.Namespace) -> None:
    """Writes prediction.json and prediction.md, and prints the table."""
    from hw1jax import record, storage

    machine, found = record.describe(), {}
    for name in options.studies:
        forms.say(name, "lowered for", PLATFORM)
        asked = forms.study_of(name)
        found[name] = predict(asked, forms.data_of(asked, options.data_dir, synthetic=options.synthetic))
    packages = machine["packages"]
    origin = f"Lowered for {PLATFORM} by jax {packages['jax']} on {machine['date'][:10]}; no such device was there."
    storage.write_json(options.out / "prediction.json", {"environment": machine, "studies": found})
    text = "\n".join([*table(found), "", origin]) + "\n"
    storage.write_bytes(options.out / "prediction.md", text.encode())
    print(text)
