"""What each algorithm gains on public tasks with real local LMs, at equal calls. Long; interrupt and resume at will.

Usage: python -m bench.gain [--tasks trec,subj,...] [--full | --algorithms auto,gepa,miprov2,dspy.gepa,dspy.miprov2]
                            [--seeds 0,1,...] [--max-calls 400] [--table-only]

Task LM qwen-0.5b, reflection LM qwen-1.5b, both as GGUF files in --models. Every run is `ratchet optimize` as a user
types it. Its own sealed test has as many pairs as the budget pays for; the winner is then measured once more on all
test rows the task has, beside the baseline, outside the budget. The table, and what each gained over all its tasks,
go to standard output and RESULTS.md; where there are more seeds than one, a third table says how far they lie apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from bench.tasks import TASKS, Task
from ratchet.core.statistics import compare_paired
from ratchet.prepare import known_algorithms

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gain"
MODELS = {"task": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "reflection": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"}
PEERS = ("dspy.gepa", "dspy.miprov2")
START, END = "<!-- bench-gain -->", "<!-- /bench-gain -->"


def ratchet(*arguments: str, home: Path) -> dict[str, Any]:
    """What a ratchet command prints as JSON; its talk goes to our standard error."""
    environment = {**os.environ, "RATCHET_HOME": str(home)}
    command = [sys.executable, "-m", "ratchet", *arguments, "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def name_of(algorithm: str, max_calls: int, seed: int) -> str:
    """What tells the runs on a task apart."""
    return f"{algorithm}-{max_calls}" + (f"-seed{seed}" if seed else "")


def optimize(task: Task, algorithm: str, *, models: Path, max_calls: int, seed: int, work: Path) -> dict[str, Any]:
    """The result of one optimization: an earlier one, one that goes on where it was interrupted, or a new one."""
    home, out = work / "home", work / "runs" / f"{task.name}-{name_of(algorithm, max_calls, seed)}"
    if (out / "result.json").exists():
        stored: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
        return stored
    files = task.write(work / "data")
    asked = {"target": task.target, "train": str(files["train"]), "algorithms": [algorithm], "seed": seed}
    asked |= {"max_calls": max_calls}
    listed: list[dict[str, Any]] = ratchet("list", home=home) if home.exists() else []  # type: ignore[assignment]
    for each in listed:
        same = asked.items() <= each["request"].get("options", {}).items()
        if same and each["status"] in ("running", "cancelled", "failed"):
            return ratchet("resume", each["id"], "--out", str(out), home=home)
    return ratchet(
        *("optimize", task.target, "--metric", task.metric, "--algorithm", algorithm, "--no-mlflow", "--force"),
        "--no-warm-start",  # an algorithm must not profit from what another one found
        *(f"--{split}={path}" for split, path in files.items()),
        *("--lm", f"local:{models / MODELS['task']}", "--reflection-lm", f"local:{models / MODELS['reflection']}"),
        *("--max-calls", str(max_calls), "--max-minutes", "240", "--seed", str(seed), "--out", str(out)),
        home=home,
    )


def measure(task: Task, target: str, *, models: Path, work: Path, name: str) -> dict[str, Any]:
    """The scores of a program on every test row, in order."""
    kept = work / "measured" / f"{task.name}-{name}.json"
    if not kept.exists():
        files = task.write(work / "data")
        found = ratchet(
            *("evaluate", target, "--test", str(files["test"]), "--metric", task.metric),
            *("--lm", f"local:{models / MODELS['task']}"),
            home=work / "home",
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found), encoding="utf-8")
    measured: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return measured


def row(task: Task, algorithm: str, *, models: Path, max_calls: int, seed: int, work: Path) -> dict[str, Any]:
    """One line of the table, from one optimization and two measurements."""
    began, name = time.monotonic(), name_of(algorithm, max_calls, seed)
    result = optimize(task, algorithm, models=models, max_calls=max_calls, seed=seed, work=work)
    folder = work / "runs" / f"{task.name}-{name}"
    unproven = folder / "unproven-program.json"
    program = unproven if unproven.exists() else folder / "program.json"
    before = measure(task, task.target, models=models, work=work, name="baseline")
    after = measure(task, str(program), models=models, work=work, name=name)
    scores = [[each["score"] or 0.0 for each in found["rows"]] for found in (before, after)]
    comparison = compare_paired(scores[0], scores[1], seed=0)
    spend = result["optimization_details"]["spend"]
    print(f"{task.name} {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return {
        "task": task.name,
        "algorithm": algorithm,
        "seed": seed,
        "status": result["status"],
        "proof": result["comparison"],
        "baseline": sum(scores[0]) / len(scores[0]),
        "optimized": sum(scores[1]) / len(scores[1]),
        "effect": comparison.effect,
        "interval": comparison.interval,
        "p_value": comparison.p_value,
        "n": comparison.n,
        "calls": spend["calls"],
        "seconds": spend["seconds"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| task | algorithm | verdict (own sealed test: gain, n, p) | baseline | optimized | gain [95 %] | p | n |"
        " calls | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        proof = each["proof"]
        own = "not opened" if proof is None else f"{proof['effect']:+.3f}, {proof['n']}, {proof['p_value']:.3f}"
        low, high = each["interval"]
        lines.append(
            f"| {each['task']} | {each['algorithm']} | {each['status']} ({own}) | {each['baseline']:.3f} "
            f"| {each['optimized']:.3f} | {each['effect']:+.3f} [{low:+.3f}, {high:+.3f}] | {each['p_value']:.4f} "
            f"| {each['n']} | {each['calls']} | {each['seconds']:.0f} |"
        )
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """What each algorithm gained over its tasks, as a Markdown table.

    The relative gain of a task whose baseline is 0 is not defined; the mean is over the others. "ahead of" counts the
    tasks, of those that both were run on, on which the winner scored higher, equal and lower, and gives the mean of the
    difference.
    """
    found = {(row["task"], row["algorithm"]): row for row in rows}
    peers = [name for name in PEERS if any(name == algorithm for _, algorithm in found)]
    lines = [
        "| algorithm | tasks | mean relative gain | gains with p < 0.05 |"
        + "".join(f" ahead of {peer} |" for peer in peers),
        "|---|---|---|---|" + "---|" * len(peers),
    ]
    for algorithm in dict.fromkeys(row["algorithm"] for row in rows):
        own = [row for row in rows if row["algorithm"] == algorithm]
        relative = [row["effect"] / row["baseline"] for row in own if row["baseline"]]
        mean = f"{sum(relative) / len(relative):+.1%}" if relative else "not defined"
        proven = sum(row["p_value"] < 0.05 and row["effect"] > 0 for row in own)
        cells = [algorithm, str(len(own)), mean, f"{proven} of {len(own)}"]
        for peer in peers:
            both = [
                (row["optimized"], found[row["task"], peer]["optimized"]) for row in own if (row["task"], peer) in found
            ]
            ahead, behind = sum(a > b for a, b in both), sum(a < b for a, b in both)
            counts = f"{ahead}, {len(both) - ahead - behind}, {behind}"
            by = f" ({sum(a - b for a, b in both) / len(both):+.3f})" if both else ""
            cells.append("-" if peer == algorithm else counts + by)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(rows: list[dict[str, Any]]) -> str:
    """How far the seeds of an algorithm lie apart on a task, as a Markdown table; nothing where there is one seed."""
    found: dict[tuple[str, str], list[float]] = {}
    for each in rows:
        found.setdefault((each["task"], each["algorithm"]), []).append(each["optimized"])
    lines = ["| task | algorithm | seeds | optimized, mean | lowest | highest |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {task} | {algorithm} | {len(scores)} | {sum(scores) / len(scores):.3f} | {min(scores):.3f} "
        f"| {max(scores):.3f} |"
        for (task, algorithm), scores in found.items()
        if len(scores) > 1
    ]
    return "\n".join(lines) if len(lines) > 2 else ""


def publish(text: str) -> None:
    """Put the table where RESULTS.md keeps it."""
    page = HERE / "RESULTS.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Run what is missing, then print and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--algorithms", default="auto,gepa,miprov2,dspy.gepa,dspy.miprov2")
    parser.add_argument("--full", action="store_true", help="every algorithm there is")
    parser.add_argument("--seeds", default="0", help="the first table is of seed 0")
    parser.add_argument("--max-calls", type=int, default=400)
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "ratchet" / "models")
    parser.add_argument("--work", type=Path, default=Path(".ratchet") / "bench-gain")
    parser.add_argument("--table-only", action="store_true", help="print what was measured before, run nothing")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.full:
        options.algorithms = ",".join(("auto", *known_algorithms()))
    rows: list[dict[str, Any]] = []
    runs = product(options.tasks.split(","), options.algorithms.split(","), map(int, options.seeds.split(",")))
    for task, algorithm, seed in runs:
        kept = RESULTS / f"{task}-{name_of(algorithm, options.max_calls, seed)}.json"
        if not kept.exists() and not options.table_only:
            found = row(
                TASKS[task],
                algorithm,
                models=options.models,
                max_calls=options.max_calls,
                seed=seed,
                work=options.work.resolve(),
            )
            kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if kept.exists():
            rows.append({"seed": 0, **json.loads(kept.read_text(encoding="utf-8"))})
        first = [each for each in rows if each["seed"] == 0]
        text = "\n\n".join(filter(None, (table(first), summary(first), spread(rows))))
        publish(text)
    print(text)


if __name__ == "__main__":
    main()
