"""The report of `gpu_check.py` for people: everything in the JSON that they would look for, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SPEED_HEAD = (
    *("backbone", "run as", "batch", "policy", "XLA", "images/s"),
    *("ms/update", "peak MiB", "first update, s", "precision"),
)
SHARE_HEAD = ("backbone", "batch", "XLA", "ms/update without, with", "share of the step", "goal")
TIMM_HEAD = (
    *("backbone", "model", "batch", "torch.compile", "images/s"),
    *("ms/update", "peak MiB", "first update, s", "precision"),
)
RATIO_HEAD = ("backbone", "batch", "ours, images/s", "PyTorch, images/s", "weights, M: ours, PyTorch", "ratio", "goal")


def as_markdown(content: dict[str, Any]) -> str:
    """The whole report."""
    single = [row for row in content["speed"] if row["case"]["strategy"] == "single"]
    rehearsal = ": a rehearsal on a CPU, which says nothing of GPUs" if content["how"]["device"] == "cpu" else ""
    parts = [
        f"# GPU check{rehearsal}\n\n{_machine_line(content)}",
        f"## Speed\n\n{_how_line(content)}\n\n{_speed_table(single)}",
        f"## Augmentation\n\n{_share_line()}\n\n{_share_table(content['augmentation'])}",
        f"## Beside PyTorch\n\n{_pytorch_part(content)}",
        f"## Several GPUs\n\n{_several_part(content)}",
        f"## Tests\n\n{_tests_line(content)}\n\n{_tests_table(content)}",
    ]
    if content["not_made"]:
        parts.append("## Not made\n\n" + "\n".join(f"- {row['what']}: {row['reason']}" for row in content["not_made"]))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _machine_line(content: dict[str, Any]) -> str:
    machine = content["machine"]
    versions = machine["versions"]
    return (
        f"{', '.join(machine['devices'])}; driver {machine['driver'] or 'none'}; TensorFlow {versions['tensorflow']} "
        f"(CUDA {machine['cuda']}, cuDNN {machine['cudnn']}), Keras {versions['keras']}, Python {machine['python']}, "
        f"{machine['cpus']} CPU cores; bloodcell_dist {versions['bloodcell_dist']} ({machine['git']}); "
        f"{content['date']}"
    )


def _how_line(content: dict[str, Any]) -> str:
    how = content["how"]
    extra = f" Settings: {', '.join(how['settings'])}." if how["settings"] else ""
    return (
        f"Drawn cells of {how['size']}x{how['size']} pixels. images/s: median (range) of {how['rounds']} rounds of up "
        f"to {how['steps']} updates, those of the two policies by turns. Batch: per replica. Peak: above what the "
        "process held before. The first update traces and compiles. Repeatable: TensorFlow promises equal bits, for "
        f"which it may take slower kernels.{extra}"
    )


def _speed_table(rows: Sequence[dict[str, Any]]) -> str:
    body = [[*_case_cells(row["case"]), *_speed_cells(row)] for row in rows]
    return _table(SPEED_HEAD, body) if body else "Nothing measured."


def _case_cells(case: dict[str, Any]) -> list[str]:
    run_as = "single" if case["strategy"] == "single" else f"{case['strategy']} x{case['replicas']}"
    return [case["backbone"], run_as, str(case["batch"]), case["policy"], case["xla"]]


def _speed_cells(row: dict[str, Any]) -> list[str]:
    if "reason" in row:
        return [row["reason"], "", "", "", ""]
    low, high = row["images_per_s_range"]
    peak = "not measured" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:,.0f}"
    return [
        f"{row['images_per_s']:,.0f} ({low:,.0f}-{high:,.0f})",
        f"{row['update_ms']:.1f}",
        peak,
        f"{row['first_update_s']:.1f}",
        row["precision"] + (", repeatable" if row.get("deterministic") else ""),
    ]


def _share_line() -> str:
    return "Share of the policy `seed` in the step, (t_seed - t_none) / t_seed: median (range) of the rounds."


def _share_table(found: Sequence[dict[str, Any]]) -> str:
    body = [
        [row["backbone"], str(row["batch"]), row["xla"], *_share_cells(row), _verdict(row, "under {:.0%}")]
        for row in found
    ]
    return _table(SHARE_HEAD, body) if body else "Not measured."


def _share_cells(row: dict[str, Any]) -> list[str]:
    if "reason" in row:
        return ["", f"not measured, {row['reason']}"]
    without, with_it = row["update_ms"]
    low, high = row["share_range"]
    return [f"{without:.1f}, {with_it:.1f}", f"{row['share']:.1%} ({low:.1%} to {high:.1%})"]


def _verdict(row: dict[str, Any], goal: str) -> str:
    """The goal, and whether it is met where that can be said."""
    if row["goal"] is None:
        return ""
    return goal.format(row["goal"]) + {None: ", open", True: ", met", False: ", missed"}[row["met"]]


def _pytorch_part(content: dict[str, Any]) -> str:
    found, left_out = content["pytorch"], content["pytorch_left_out"]
    parts = [f"Not measured: {left_out}."] if left_out else []
    if found:
        parts.append(
            f"PyTorch {found['torch']} (CUDA {found['cuda']}, cuDNN {found['cudnn']}), timm {found['timm']}, Python "
            f"{found['python']}, on {found['device']}: channels_last, bfloat16 by autocast, cudnn.benchmark, TF32, "
            "pictures on the device; torch.compile of gather, forward and loss; clipping, timm's Lion and the average "
            "of weights by foreach. The same drawn sizes, policy `none`; no promise of equal bits."
        )
    if content["timm"]:
        parts.append(_table(TIMM_HEAD, [_timm_cells(row) for row in content["timm"]]))
    if content["beside_pytorch"]:
        parts.append("Ratio: the better of ours by XLA, policy `none`, to the best of PyTorch's.")
        parts.append(_table(RATIO_HEAD, [_ratio_cells(row) for row in content["beside_pytorch"]]))
    return "\n\n".join(parts) or "Not measured."


def _timm_cells(row: dict[str, Any]) -> list[str]:
    case = row["case"]
    return [case["backbone"], row.get("model", ""), str(case["batch"]), case["mode"], *_speed_cells(row)]


def _ratio_cells(row: dict[str, Any]) -> list[str]:
    head, goal = [row["backbone"], str(row["batch"])], _verdict(row, "at least {:.1f}")
    if "reason" in row:
        return [*head, "", "", "", f"not measured, {row['reason']}", goal]
    ours, theirs = row["images_per_s"]
    weights = ", ".join(f"{count / 1e6:.2f}" for count in row["weights"])
    return [
        *(*head, f"{ours:,.0f} (XLA {row['xla']})", f"{theirs:,.0f} ({row['mode']})"),
        *(weights, f"{row['ratio']:.2f}", goal),
    ]


def _several_part(content: dict[str, Any]) -> str:
    reasons = content["several_gpus"] or {}
    rows = [row for row in content["speed"] if row["case"]["strategy"] != "single"]
    lines = "\n".join(f"{name}: not measured, {why}." for name, why in reasons.items())
    return "\n\n".join(filter(None, [lines, _speed_table(rows) if rows else ""])) or "Not measured."


def _tests_line(content: dict[str, Any]) -> str:
    if content["tests_left_out"]:
        return f"Not run: {content['tests_left_out']}."
    outcomes = [test["outcome"] for tests in content["tests"].values() for test in tests]
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped")]
    return ", ".join(counts) + "." if outcomes else "None run."


def _tests_table(content: dict[str, Any]) -> str:
    """Those that measured something or did not pass."""
    rows = [
        [file, test["name"], test["outcome"], "; ".join(filter(None, _remarks(test)))]
        for file, tests in content["tests"].items()
        for test in tests
        if test["measured"] or test["outcome"] != "passed"
    ]
    return _table(("file", "test", "outcome", "measured, reason"), rows) if rows else ""


def _remarks(test: dict[str, Any]) -> list[str]:
    return [*map(": ".join, test["measured"].items()), test["reason"]]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
