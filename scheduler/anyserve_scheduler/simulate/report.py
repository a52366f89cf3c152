"""Runs side by side: a table in text, and one HTML file with plots and nothing from outside."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Sequence

from anyserve_scheduler.simulate.summary import Bin, Result

_ROWS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("requests", lambda r: f"{r.requests:,}"),
    ("answered", lambda r: f"{r.outcomes.get('answered', 0):,}"),
    ("goodput, requests/s", lambda r: f"{r.goodput:,.1f}"),
    ("wait, mean, ms", lambda r: f"{r.wait_mean * 1e3:.2f}"),
    ("wait, p50, ms", lambda r: f"{r.wait_p50 * 1e3:.2f}"),
    ("wait, p99, ms", lambda r: f"{r.wait_p99 * 1e3:.2f}"),
    ("answer, p50, ms", lambda r: f"{r.time_p50 * 1e3:.2f}"),
    ("answer, p99, ms", lambda r: f"{r.time_p99 * 1e3:.2f}"),
    ("prefix hit rate", lambda r: f"{r.hit_rate:.3f}"),
    ("delegated", lambda r: f"{r.delegated:,}"),
    ("not taken, sent on", lambda r: f"{r.retried:,}"),
    ("resumed", lambda r: f"{r.resumed:,}"),
    ("loads and unloads", lambda r: f"{r.loads:,} {r.unloads:,}"),
    ("decisions", lambda r: f"{r.decisions:,}"),
    ("decision, mean, µs", lambda r: f"{r.decision_mean * 1e6:.1f}"),
    ("decision, p99, µs", lambda r: f"{r.decision_p99 * 1e6:.1f}"),
    ("simulated, s", lambda r: f"{r.duration:,.1f}"),
    ("took, s", lambda r: f"{r.wall:.1f}"),
    ("invariants broken", lambda r: f"{r.broken:,}"),
    ("outcomes' digest", lambda r: r.digest),
)
_COLOURS = ("#3366cc", "#dc3912", "#109618", "#990099")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 220, 60, 30


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The table of the runs, a column each; the first row is its head."""
    kinds = sorted({kind for result in results for kind in result.outcomes} - {"answered"})
    table = [("", *(result.policy for result in results))]
    for name, value in _ROWS:
        table.append((name, *(value(result) for result in results)))
        if name == "answered":
            for kind in kinds:
                counts = (f"{result.outcomes.get(kind, 0):,}" for result in results)
                table.append((f"  {kind}", *counts))
    return table


def as_text(results: Sequence[Result]) -> str:
    """The table, and the invariants that were broken."""
    table = rows(results)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    for result in results:
        lines += [f"{result.policy}: {what}" for what in result.violations]
    head = f"{results[0].scenario}: {results[0].replicas:,} replicas"
    return "\n".join([head, "", *lines])


def as_html(results: Sequence[Result]) -> str:
    """A page with the table and plots over the time of the run."""
    head, *body = rows(results)
    title = html.escape(f"{results[0].scenario}: {results[0].replicas:,} replicas")
    cells = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    columns = "".join(
        f'<th style="color:{colour}">{html.escape(name)}</th>'
        for name, colour in zip(head[1:], itertools.cycle(_COLOURS), strict=False)
    )
    broken = "".join(
        f"<li>{html.escape(f'{result.policy}: {what}')}</li>"
        for result in results
        for what in result.violations
    )
    return f"""<!doctype html>
<meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; }}
td, th {{ padding: 2px 12px; text-align: right; }}
td:first-child {{ text-align: left; }}
svg text {{ font: 11px sans-serif; }}
</style>
<h1>{title}</h1>
<table><tr><th></th>{columns}</tr>{cells}</table>
<ul>{broken}</ul>
{_plot("Answered, requests a second", results, lambda bin: bin.goodput)}
{_plot("Wait until the start, p99, ms", results, lambda bin: bin.wait_p99 * 1e3)}
"""


def _plot(title: str, results: Sequence[Result], value: Callable[[Bin], float]) -> str:
    """Lines over time, one for each run."""
    series = [[(bin.at, value(bin)) for bin in result.bins] for result in results]
    points = [point for line in series for point in line]
    if not points:
        return ""
    begin, end = min(at for at, _ in points), max(at for at, _ in points)
    top = max(y for _, y in points) or 1.0
    across, up = (_WIDTH - _LEFT) / ((end - begin) or 1.0), (_HEIGHT - 2 * _BOTTOM) / top

    def place(at: float, y: float) -> str:
        return f"{_LEFT + (at - begin) * across:.1f},{_HEIGHT - _BOTTOM - y * up:.1f}"

    lines = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.5"'
        f' points="{" ".join(place(at, y) for at, y in line)}"/>'
        for line, colour in zip(series, itertools.cycle(_COLOURS), strict=False)
    )
    ground = _HEIGHT - _BOTTOM
    return f"""<h2>{html.escape(title)}</h2>
<svg width="{_WIDTH}" height="{_HEIGHT}">
<path d="M{_LEFT},{_BOTTOM}V{ground}H{_WIDTH}" fill="none" stroke="#888"/>
<text x="4" y="{_BOTTOM + 4}">{top:,.4g}</text><text x="4" y="{ground}">0</text>
<text x="{_LEFT}" y="{_HEIGHT - 10}">0 s</text>
<text x="{_WIDTH - 60}" y="{_HEIGHT - 10}">{end - begin:,.0f} s</text>
{lines}
</svg>"""
