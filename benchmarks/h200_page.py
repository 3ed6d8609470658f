"""The results page of one GPU, made of what `zamba-lm bench --json` and `benchmarks/h200.py` wrote: see there.

Every figure comes from a file, with the command that made it; figures of others that were measured elsewhere are those of the
registry (zamba_lm/eval/bench/cases.py), and say so.
"""

import subprocess
from pathlib import Path

from benchmarks.h200_commands import DENSE, KERNEL_PRESETS, SWEPT
from zamba_lm.eval.bench.cases import CASES, SOURCES, Case

ROOT = Path(__file__).parents[1]
MISSING = "Not measured."
NOT = "not measured"
PICTURE = "../../docs/img/h200-contexts.png"  # which tools/plot_gpu.py draws from the JSON beside the page


def page(reports: list[dict], at: str = "") -> str:
    first = reports[0]
    roofs = sorted(report["roof"]["copy_rate"] / 1e9 for report in reports)
    matrix = sorted(report["roof"]["matrix_rate"] / 1e12 for report in reports)
    installed = ", ".join(f"{name} {version or 'not installed'}" for name, version in first["versions"].items())
    head = (
        f"Measured {first['time'][:10]} at commit {at or commit()} on one {first['device']['name']} ({installed}). Random "
        f"weights of the published shapes, bfloat16. Copies of {first['roof']['copy_bytes'] / 1e9:.1f} GB (read and written) "
        f"ran at {roofs[0]:.0f} to {roofs[-1]:.0f} GB/s, products of {first['roof']['matrix_size']}^3 at {matrix[0]:.0f} to "
        f"{matrix[-1]:.0f} TFLOP/s, "
        "measured anew at the start of each run; limits and shares are of those. Times are medians; how they are taken, and when "
        "two sides count as agreeing: [benchmarks](../../docs/benchmarks.md)."
    )
    elsewhere = "\n".join(f"- {who}: {what}." for who, what in SOURCES.items())
    parts = [
        "# On an H200",
        head,
        "## The cases",
        case_table(reports),
        f"`elsewhere` are figures of others taken earlier, on another machine of this kind:\n\n{elsewhere}",
        "## From weights in memory to the first token",
        start_table(reports) or MISSING,
        "## Errors",
        agreement_table(reports) or MISSING,
        "## Kernels",
        slower_table(reports),
        *kernel_tables(reports),
        absent("kernels", KERNEL_PRESETS, [r for r in reports if r["kind"] == "kernels"]),
        "## Contexts of all lengths",
        f"![time and memory of decoding at batch 1 against context]({PICTURE})",
        sweep_table(reports),
        absent("contexts", (*SWEPT, DENSE), swept(reports)),
        "## Commands",
        "```\n" + "\n".join(dict.fromkeys(report["command"] for report in reports)) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def case_table(reports: list[dict]) -> str:
    lines = ["| case | limit | reach | ours | spread | of the limit | peak GB | transformers | peak GB | speed-up | elsewhere |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        ours, theirs = _rows_of(case, reports)
        cells = [case.name, _time(ours and ours["limit"]), _time(case.reach) + (f", {case.peak / 1e9:g} GB" if case.peak else "")]
        if ours is None:
            cells += [NOT, "", "", "", NOT if case.hf else "", "", ""]
        else:
            good = {True: "**", False: ""}[bool(ours["reached"])]
            cells += [good + _figure(ours) + good, _spread(ours), _percent(ours["of_limit"]), _gb(ours)]
            cells += [_figure(theirs) or (NOT if case.hf else ""), _gb(theirs), _speed_up(ours, theirs)]
        earlier = {"transformers": case.hf, "vLLM": case.vllm}
        cells.append(", ".join(f"{who} {_time(time)}" for who, time in earlier.items() if time))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\nBold: reached. Train-step: a pass of 4096 tokens."


def _speed_up(ours: dict, theirs: dict | None) -> str:
    """Nothing where outputs disagree, or where nobody compared them."""
    if ours["speed_up"]:
        return f"{ours['speed_up']:.1f} x"
    return "outputs not shown to agree" if theirs and theirs["seconds"] else ""


def absent(what: str, names: tuple[str, ...], reports: list[dict]) -> str:
    """A line for the models of which something is missing."""
    there = {report["model"]["name"] for report in reports}
    missing = [name for name in names if name not in there]
    return f"Not measured, {what}: {', '.join(missing)}." if missing else ""


def start_table(reports: list[dict]) -> str:
    lines = ["| model | by | seconds | how |", "|---|---|---|---|"]
    for report in reports:
        if report["kind"] == "start":
            lines += [f"| {report['model']['name']} | {row['side']} | {_figure(row)} | {row['note']} |" for row in report["rows"]]
    return "\n".join(lines) if len(lines) > 2 else ""


def _rows_of(case: Case, reports: list[dict]) -> tuple[dict | None, dict | None]:
    """Our row of a case and theirs, from the same run."""
    for report in reports:
        for row in report["rows"]:
            if (row.get("case") or {}).get("name") == case.name:
                same = [r for r in report["rows"] if (r["batch"], r["context"]) == (row["batch"], row["context"])]
                return row, next((r for r in same if r["side"] != row["side"]), None)
    return None, None


def agreement_table(reports: list[dict]) -> str:
    heads = ["run", "against", "texts", "our logits", "their logits", "ours - theirs"]
    heads += ["our worst token", "theirs", "our gradients", "theirs", "agree"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for report in reports:
        a = report["agreement"]
        if a is None:
            continue
        cells = [f"{report['kind']} {report['model']['name']}", a["exact"], str(a["texts"])]
        cells += [f"{a['ours']:.4f}", f"{a['theirs']:.4f}", _apart(a)]
        cells += [_small(a[name]) for name in ("our_regret", "their_regret", "our_gradient", "their_gradient")]
        lines.append("| " + " | ".join([*cells, "yes" if a["ok"] else f"**no**: {a['reason']}"]) + " |")
    note = (
        "Root mean square distance of the logits from the exact pass, over their spread; the difference with its standard error "
        "over the texts; what the worst greedy choice loses."
    )
    return "\n".join(dict.fromkeys(lines)) + "\n\n" + note if len(lines) > 2 else ""


def _apart(agreement: dict) -> str:
    doubt = agreement["doubt"]
    return "" if doubt is None else f"{agreement['ours'] - agreement['theirs']:+.4f} ± {doubt:.4f}"


def slower_table(reports: list[dict]) -> str:
    """Where somebody else's kernel that does the same is faster than ours."""
    lines = ["| model | kernel | rows | tokens | ours | faster | time |", "|---|---|---|---|---|---|---|"]
    kernels = [report for report in reports if report["kind"] == "kernels"]
    for report in kernels:
        for row in report["rows"]:
            if not row["ours"] and not row.get("part") and row["ratio"] and row["ratio"] < 1:
                ours = _time(row["seconds"]["median"] / row["ratio"])
                cells = [row["kernel"], str(row["rows"]), str(row["tokens"]), ours, row["side"], _figure(row)]
                lines.append("| " + " | ".join([report["model"]["name"], *cells]) + " |")
    if len(lines) > 2:
        return "Slower than somebody else's:\n\n" + "\n".join(lines)
    return "None of those measured is slower than somebody else's." if kernels else ""


def kernel_tables(reports: list[dict]) -> list[str]:
    found = []
    for report in reports:
        if report["kind"] != "kernels":
            continue
        lines = [f"### {report['model']['name']}", ""]
        lines += [
            "| kernel | rows | tokens | by | time | of copy rate | of matrix rate | error | x ours |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in report["rows"]:
            cells = [row["kernel"], str(row["rows"]), str(row["tokens"]), row["side"]]
            cells += [_figure(row) if row["seconds"] else row["note"], _percent(row["copy_share"]), _percent(row["matrix_share"])]
            lines.append("| " + " | ".join([*cells, _small(row["error"]), f"{row['ratio']:.2f}" if row["ratio"] else ""]) + " |")
        found.append("\n".join(lines))
    return found


def swept(reports: list[dict]) -> list[dict]:
    return [r for r in reports if r["kind"] == "decode" and (len({row["context"] for row in r["rows"]}) > 2 or _dense(r))]


def _dense(report: dict) -> bool:
    return report["model"]["preset"] == DENSE


def sweep_table(reports: list[dict]) -> str:
    lines = ["| model | by | context | time a step | peak GB | of the limit |", "|---|---|---|---|---|---|"]
    for report in swept(reports):
        for row in sorted(report["rows"], key=lambda row: (row["side"] != "zamba-lm", row["context"])):
            cells = [report["model"]["name"], row["side"], str(row["context"]), _figure(row), _gb(row), _percent(row["of_limit"])]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _figure(row: dict | None) -> str:
    if row is None:
        return ""
    return _time(row["seconds"]["median"]) if row["seconds"] else row["note"]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} us"


def _spread(row: dict) -> str:
    seconds = row["seconds"]
    return f"{(seconds['high'] - seconds['low']) / seconds['median']:.1%}" if seconds and seconds["rounds"] > 1 else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _gb(row: dict | None) -> str:
    return f"{row['peak_bytes'] / 1e9:.2f}" if row and row.get("peak_bytes") else ""


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def commit() -> str:
    def git(*words):
        try:
            return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        except OSError:  # no git on a machine that only measures
            return ""

    changed = " and uncommitted changes" if git("status", "--porcelain", "src") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed
