"""A report as a table for people."""

import sys

from rich.console import Console
from rich.table import Table

from zamba_lm.eval.bench.kernels import KernelRow
from zamba_lm.eval.bench.report import Report, Row

WIDTH = 180  # of a file or a pipe, which get long lines, not broken ones
COLUMNS = ("", "batch", "context", "time", "spread", "tokens/s", "peak GB", "GB", "TFLOP", "of copy", "of matrix", "limit")
COLUMNS += ("of limit", "reach", "speed-up", "")
KERNEL_COLUMNS = ("kernel", "rows", "tokens", "by", "time", "spread", "MB", "GFLOP", "of copy", "of matrix", "of limit", "error")
KERNEL_COLUMNS += ("x ours", "")


def show(report: Report, file=None) -> None:
    """Print a report."""
    file = file or sys.stdout
    console = Console(file=file, highlight=False, markup=False, width=None if file.isatty() else WIDTH)
    for line in _head(report):
        console.print(line, soft_wrap=True)
    kernels = report.kind == "kernels"
    table = Table(box=None, padding=(0, 2, 0, 0))
    for n, name in enumerate(KERNEL_COLUMNS if kernels else COLUMNS):
        table.add_column(name, justify="left" if name in ("kernel", "by") or n in (0, 15) else "right", no_wrap=bool(name))
    for row in report.rows:
        table.add_row(*(_kernel(row, report) if kernels else _whole(row, report)))
    console.print(table)


def _head(report: Report) -> list[str]:
    roof, model, device = report.roof, report.model, report.device
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items() if version)
    lines = [
        f"{report.kind}: {model['name']}, {model['parameters'] / 1e9:.3g} B parameters, {model['dtype']}"
        + (", random weights" if model["random"] else ""),
        f"on {device['name']} ({versions}): copies {roof.copy_rate / 1e9:.0f} GB/s ({roof.copy_bytes / 1e9:.1f} GB read and "
        f"written), multiplies {roof.matrix_rate / 1e12:.3g} TFLOP/s ({roof.matrix_size}^3, {roof.dtype})",
    ]
    if report.peer:
        kernels = ", ".join(f"{name} {version or 'not installed'}" for name, version in report.peer["kernels"].items())
        lines.append(f"against {report.peer['name']} {report.peer['version']} on the same weights ({kernels})")
    return [*lines, *_agreement(report), ""]


def _agreement(report: Report) -> list[str]:
    a = report.agreement
    if a is None:
        return []
    errors = f"logits off by {_error(a.ours)} (ours) and {_error(a.theirs)} (theirs) of their spread, against {a.exact}"
    if a.our_gradient is not None:
        errors += f"; gradients by {_error(a.our_gradient)} and {_error(a.their_gradient)} of their norm"
    return [f"outputs agree: {errors}"] if a.ok else [f"OUTPUTS DISAGREE, no speed-up is shown: {a.reason}"]


def _whole(row: Row, report: Report) -> list[str]:
    roof = report.roof
    reach = f"{'yes' if row.reached else 'no'}, {_time(row.case.reach)}" if row.case and row.seconds else ""
    return [
        row.side,
        str(row.batch),
        str(row.context),
        _time(row.seconds and row.seconds.median),
        _spread(row.seconds),
        f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else "-",
        f"{row.peak_bytes / 1e9:.2f}" if row.peak_bytes else "-",
        f"{row.cost.bytes / 1e9:.3g}",
        f"{row.cost.flops / 1e12:.3g}",
        _percent(row.share(row.cost.bytes, roof.copy_rate)),
        _percent(row.share(row.cost.flops, roof.matrix_rate)),
        _time(row.limit),
        _percent(row.of_limit),
        reach,
        f"{row.speed_up:.2f} x" if row.speed_up else "",
        row.note,
    ]


def _kernel(row: KernelRow, report: Report) -> list[str]:
    plain = row.plain(report.roof)
    return [
        row.kernel,
        str(row.rows),
        str(row.tokens),
        row.side,
        _time(row.seconds and row.seconds.median),
        _spread(row.seconds),
        f"{row.cost.bytes / 1e6:.4g}",
        f"{row.cost.flops / 1e9:.3g}",
        _percent(plain["copy_share"]),
        _percent(plain["matrix_share"]),
        _percent(plain["of_limit"]),
        _error(row.error),
        f"{row.ratio:.2f}" if row.ratio else "",
        row.note,
    ]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} us"


def _spread(seconds) -> str:
    """How far rounds lie apart: (slowest - fastest) / median."""
    return f"{(seconds.high - seconds.low) / seconds.median:.1%}" if seconds and seconds.rounds > 1 else ""


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}" if share < 0.995 else f"{share:.0%}"


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.2g}"
