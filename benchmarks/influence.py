"""What scores of samples are worth: their rank correlation with exact leave-one-out retraining.

    python benchmarks/influence.py [--samples 200] [--seeds 5] [--whole-samples 60]
        [--whole-seeds 3] [--whole-steps 150] [--quick] [--cost] [--json influence.json]

convex: scikit-learn's digits, --samples of them, features of a ResNet-18 of width 4 after 100
steps, frozen; h at the optimum of mean cross-entropy + l2 / 2 · ‖θ‖² (l2 = 0.001, float64), with
and without each sample. Truth: ‖θ₋ᵢ − θ‖₂. With and without 10% wrong labels. `exact …` is the
whole curvature matrix of h in place of its Kronecker-factored eigenbasis, at the same damping; with
the objective's own l2 it is what Koh & Liang's formula says.

whole: a ResNet-18 of width 2 on --whole-samples digits, --whole-steps AdamW steps of 20 from the
same initialisation in the same order, with and without each sample. Truths: the change of all
parameters, of h's, of the test loss (absolute). Last row: the truth's own rank correlation between
two seeds, each with its initialisation and order; no score that is one number a sample can be
expected to do much better. The samples are the same for all seeds.

Numbers are Spearman's rank correlation: mean ± standard deviation (ddof 1) over seeds.

--cost: processor time of scoring a training set against training on as many images (ResNet-18 of
width 8, 32 × 32 pixels, batches of 128, fp32, un-augmented), in turns. `tracin`: a checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from leave_one_out import (
    Convex,
    digits,
    exact_norms,
    labels,
    scores,
    spec,
    student_features,
    trained,
    whole_changes,
)
from machine import describe
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from scoring_cost import costs

from trainers.spec import SelectionMethod

DAMPINGS = (0.001, 0.01, 0.1, 1.0)
OTHERS: tuple[SelectionMethod, ...] = ("el2n", "loss", "tracin", "random")
L2 = 1e-3
Row = dict[str, list[float]]
"""By score, a rank correlation a seed."""


def agreement(score_N: Tensor, truth_N: Tensor) -> float:
    return float(spearmanr(score_N.numpy(), truth_N.numpy()).statistic)


def convex(samples: int, seed: int, noise: float) -> dict[str, float]:
    """The rank correlation of each score with ‖θ₋ᵢ − θ‖₂."""
    data = digits(samples, seed=seed)
    student = spec(data, width=4, batch_size=min(50, samples), seed=seed, noise=noise)
    weights = trained(student, data, 100)
    a_ND, labels_N = student_features(student, data, weights), labels(student, data)
    problem = Convex.solved(a_ND, labels_N, num_classes=data.info.num_classes, l2=L2)
    given = student, data, [problem.in_weights(weights)]
    found = {f"influence {d:g}": scores("influence", *given, damping=d) for d in DAMPINGS}
    found |= {f"exact {d:g}": problem.exact(d) for d in DAMPINGS}
    found["exact l2"] = exact_norms(a_ND, problem.theta_CD, labels_N, added=L2)
    found |= {method: scores(method, *given) for method in OTHERS}
    truth_N = problem.changes()
    return {name: agreement(value, truth_N) for name, value in found.items()}


def whole(samples: int, seeds: int, steps: int) -> dict[str, Row]:
    """By truth, the rank correlation of each score with it, and of the truth with itself."""
    data = digits(samples, seed=0)
    rows: dict[str, Row] = {}
    truths: dict[str, list[Tensor]] = {}
    for seed in range(seeds):
        student = spec(data, width=2, batch_size=20, seed=seed, noise=0.0)
        weights, changes = whole_changes(student, data, steps=steps, checkpoints=3)
        last = weights[-1:]
        found = {
            f"influence {d:g}": scores("influence", student, data, last, damping=d)
            for d in DAMPINGS
        }
        found |= {m: scores(m, student, data, last) for m in OTHERS if m != "tracin"}
        found["tracin"] = scores("tracin", student, data, weights)
        for truth, truth_N in changes.items():
            truths.setdefault(truth, []).append(truth_N)
            for name, value in found.items():
                row = rows.setdefault(truth, {})
                row.setdefault(name, []).append(agreement(value, truth_N))
    for truth, of_seeds in truths.items():
        pairs = itertools.combinations(of_seeds, 2)
        rows[truth]["the truth of another seed"] = [agreement(*pair) for pair in pairs]
    return rows


def transposed(rows: Iterable[dict[str, float]]) -> Row:
    found: Row = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def summary(values: list[float]) -> dict[str, Any]:
    spread = stdev(values) if len(values) > 1 else None
    return {
        "mean": round(mean(values), 3) if values else None,
        "std": None if spread is None else round(spread, 3),
        "n": len(values),
    }


def measured(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    columns: dict[str, Row] = {}
    for noise in (0.0, 0.1):
        seeds = (convex(options.samples, seed, noise) for seed in range(options.seeds))
        columns[f"convex, {noise:.0%} wrong labels"] = transposed(seeds)
    for truth, row in whole(
        options.whole_samples, options.whole_seeds, options.whole_steps
    ).items():
        columns[f"whole: {truth}"] = row
    return {
        "spearman": {
            truth: {name: summary(values) for name, values in row.items()}
            for truth, row in columns.items()
        }
    }


def show(console: Console, result: dict[str, Any]) -> None:
    if "spearman" in result:
        console.print(_correlations(result["spearman"]))
    for name, cost in result.get("cost", {}).items():
        low, high = cost["quartiles"]
        console.print(f"{name}: {cost['median']:.2f} ({low:.2f}–{high:.2f}) of an epoch's training")


def _correlations(columns: dict[str, Any]) -> Table:
    table = Table("score", *columns, title="Spearman's rank correlation with leave-one-out truth")
    names = dict.fromkeys(name for row in columns.values() for name in row)
    for name in names:
        cells = [row.get(name) for row in columns.values()]
        table.add_row(name, *(_cell(cell) for cell in cells))
    return table


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None or cell["mean"] is None:
        return ""
    spread = "" if cell["std"] is None else f" ± {cell['std']:.2f}"
    return f"{cell['mean']:.2f}{spread} ({cell['n']})"


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--whole-samples", type=int, default=60)
    parser.add_argument("--whole-seeds", type=int, default=3)
    parser.add_argument("--whole-steps", type=int, default=150)
    parser.add_argument("--quick", action="store_true", help="so small that it means nothing")
    parser.add_argument("--cost", action="store_true", help="also what scoring costs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.samples, options.seeds = 25, 1
        options.whole_samples, options.whole_seeds, options.whole_steps = 20, 2, 3
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    load = round(os.getloadavg()[0], 1)
    result = measured(options)
    if options.cost:
        result["cost"] = costs(
            images=128 if options.quick else 512, rounds=2 if options.quick else 7
        )
    show(Console(), result)
    if options.json is not None:
        given = {name: value for name, value in vars(options).items() if name != "json"}
        machine = describe("torch", "scipy", "scikit-learn") | {"load": load}
        about = {"machine": machine, "options": given, "l2": L2, **result}
        options.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
