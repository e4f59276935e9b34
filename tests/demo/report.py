"""The report of a run: one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from .picture import COLOURS, Course
from .scenario import INTERVAL_S

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22272e; max-width: 1180px; margin: 32px auto; padding: 0 20px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; }
p { max-width: 78ch; } .muted { color: #6b7480; }
img { width: 100%; height: auto; border: 1px solid #e3e7ec; border-radius: 6px; }
table { border-collapse: collapse; } th, td { text-align: right; padding: 5px 14px; border-bottom: 1px solid #e3e7ec; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
pre { background: #f6f8fa; padding: 12px 14px; border-radius: 6px; overflow-x: auto; font-size: 12.5px; }
"""


def write(path: Path, courses: Sequence[Course], picture: Path, *, setting: str, texts: Mapping[str, str]) -> None:
    """Write the page; `texts` are shown as they are, each under its title."""
    image = base64.b64encode(picture.read_bytes()).decode()
    sections = "".join(f"<h2>{html.escape(title)}</h2><pre>{html.escape(text)}</pre>" for title, text in texts.items())
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Bandkeeper demo</title><style>{STYLE}</style></head><body>
<h1>Bandkeeper: one load, three objectives</h1>
<p class="muted">{html.escape(setting)}</p>
<h2>Figures</h2>
{_table(courses)}
{_how_counted()}
<h2>Course</h2>
<img alt="Load, replicas, batch cap, utilisation and latency over time" src="data:image/png;base64,{image}">
{sections}
</body></html>
"""
    path.write_text(page, encoding="utf-8")


def _table(courses: Sequence[Course]) -> str:
    headings = ("Objective", "SLO kept", "Band held", "GPU-seconds", "Most replicas", "Changes of replicas")
    rows = []
    for course in courses:
        found = course.figures
        cells = (
            f'<b style="color:{COLOURS[course.policy.objective]}">{course.policy.objective}</b>',
            *(f"{share} intervals" for share in (found.inside_slo, found.in_band)),
            *(f"{number:,.0f}" for number in (found.gpu_s, found.most_replicas, found.changes)),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _how_counted() -> str:
    return f"""<p class="muted">An interval is {INTERVAL_S} s. <b>SLO kept</b>: of the intervals after the first cold
start in which requests were answered, those in which 95 % of first tokens and of tokens were inside their thresholds,
by the histograms in Prometheus. <b>Band held</b>: of the intervals whose mean load some whole number of replicas inside
the bounds puts inside the band, at one of the batch caps that the policy used, those whose mean utilisation (requests
that come over what the ready replicas can sustain) was inside it. <b>GPU-seconds</b>: from scheduling to the end
of draining.</p>"""
