"""The report: says what happened, loses no peak, and lets no text of a user's become markup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bandkeeper.lab.report import axes, figures, html, plane, sheet, svg, words
from bandkeeper.lab.result import Counts, Move, Result, SLOResult
from tests.unit.lab_bench import a_bench
from tests.unit.lab_results import a_result

EVIL = "</script><img src=x onerror=alert(1)>&\"'\u2028"
VOID = {"meta", "img", "br", "input", "link"}


class _Seen(HTMLParser):
    """Elements and attributes of a page, and whether its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.data: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data.append(data)


def _data_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    content: dict[str, object] = json.loads(found.group(1))
    return content


def _slo(attainment: float | None, *, signal: str = "TimeToFirstToken", threshold: float = 0.5) -> SLOResult:
    return SLOResult(signal=signal, percentile=95, threshold=threshold, attainment=attainment, value=0.4)


@pytest.mark.parametrize(
    ("slos", "sentence"),
    [
        ([_slo(0.992)], "Kept 99.2 % of first tokens under 500 ms for 41.3 GPU-hours."),
        (
            [_slo(0.9999), _slo(0.96, signal="InterTokenLatency", threshold=0.05)],
            "Kept 99.99 % of first tokens under 500 ms and 96 % of token gaps under 50 ms for 41.3 GPU-hours.",
        ),
        (
            [_slo(0.94996), _slo(0.99, signal="EndToEndLatency", threshold=2)],
            "Missed the SLO: only 94.996 % of first tokens under 500 ms (95 % promised); kept 99 % of answers under "
            "2 s. Cost 41.3 GPU-hours.",
        ),
        ([_slo(None)], "Finished 72,020 of 72,311 requests for 41.3 GPU-hours; no promise could be judged."),
        ([], "Finished 72,020 of 72,311 requests for 41.3 GPU-hours; no SLO was asked for."),
        (
            [SLOResult(signal="GenerationTokens", percentile=None, threshold=900, attainment=0.9, value=850)],
            "Missed the SLO: only 850 tokens/s (at least 900 tokens/s promised). Cost 41.3 GPU-hours.",
        ),
    ],
)
def test_the_headline_says_what_happened(slos: list[SLOResult], sentence: str) -> None:
    series = a_result().series
    values = [series.slo_values[0]] * len(slos)
    result = a_result(slos=slos, series=series.model_copy(update={"slo_values": values}))
    assert words.headline(result) == sentence


@pytest.mark.parametrize(
    ("value", "below", "text"),
    [
        (1.0, 1.0, "100 %"),
        (0.99996, 1.0, "99.996 %"),
        (0.9999999, 1.0, "> 99.999 %"),
        (0.0, 1.0, "0 %"),
        (0.0001, 1.0, "0.01 %"),
        (0.0000001, 1.0, "< 0.001 %"),
        (0.95, 1.0, "95 %"),
        (0.9499, 0.95, "94.99 %"),
        (None, 1.0, "not known"),
    ],
)
def test_a_share_never_reads_as_kept_where_it_was_not(value: float | None, below: float, text: str) -> None:
    assert words.share(value, below=below) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "0.0123"),
        (4.5, "4.5"),
        (41.29, "41.3"),
        (999.6, "1,000"),
        (12345.6, "12,346"),
        (0, "0"),
        (-2.5, "-2.5"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (900, "15 min"), (5400, "90 min"), (9000, "2 h 30 min"), (86400, "24 h")]
)
def test_spans_are_in_the_units_of_people(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("hours", "told"),
    [
        (
            {"work": 20.0, "band": 2.5, "slo": 0.001, "peak": 6.651, "hold": 1.4},
            ("peak: 6.65 GPU-h", "band 2.5, hold 1.4"),
        ),
        ({"work": 20.0, "band": 0.0}, ("nothing", "")),
    ],
)
def test_the_dearest_rule_comes_first(hours: dict[str, float], told: tuple[str, str]) -> None:
    assert words.held_for(hours) == told


def test_a_rule_that_tells_nothing_of_itself_has_no_tile() -> None:
    assert "Held for one rule alone" in html.render(html.page(a_result()))
    assert "Held for one rule alone" not in html.render(html.page(a_result(gpu_hours_by_rule=None)))


def test_the_page_is_whole_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    html.write(a_result(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    seen = _Seen(page)
    assert not {"link", "img", "iframe", "object"} & set(seen.tags)
    assert not {"src", "href", "xlink:href", "action"} & seen.attributes
    assert not re.search(r"https?://(?!www\.w3\.org)|url\((?!#)|@import", page)
    assert "default-src 'none'" in page.replace("&#x27;", "'")


def test_the_page_shows_everything(tmp_path: Path) -> None:
    page = html.render(html.page(a_result()))
    for title in (
        "Load", "Replicas", "Moves", "Batch", "Queue", "Utilisation", "GPU activity", "Quality of utilisation",
        "Time to first token p95", "Time between tokens p95", "How this was counted",
    ):  # fmt: skip
        assert f"{title}</b>" in page or f"<h2>{title}" in page
    assert "SLO 500 ms" in page
    assert "band 60 to 70 %" in page
    assert "grey: the first 15 min are not judged" in page
    assert "BatchCapLowered" in page
    assert page.count("<svg") == 1 + len(sheet.of(a_result()).parts) + 1  # the lane of moves, and the time axis


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    plain = a_result()
    move = Move(
        at_s=1000, replicas_from=1, replicas_to=2, cap_from=None, cap_to=None, reason=f"R{EVIL}", why=f"W{EVIL}"
    )
    texts: dict[str, Any] = {
        name: f"{name}{EVIL}" for name in ("rule", "policy", "objective", "server", "model", "gpu", "workload")
    }
    evil = a_result(
        **texts,
        notes=[EVIL],
        moves=[move],
        slos=[_slo(0.9, signal=f"S{EVIL}"), *plain.slos[1:]],
        series=plain.series.model_copy(update={"quality": [f"Q{EVIL}"] * len(plain.series.at_s)}),
    )
    page = html.render(html.page(evil))
    seen = _Seen(page)
    assert seen.tags.count("script") == _Seen(html.render(html.page(plain))).tags.count("script") == 2
    assert "img" not in seen.tags
    assert not any(name.startswith("on") for name in seen.attributes)
    assert EVIL in "".join(seen.data)
    events = _data_of(page)["events"]
    assert isinstance(events, list)
    assert events[0]["text"] == f"replicas 1 → 2: R{EVIL}. W{EVIL}"


def test_no_text_becomes_markup_in_a_comparison() -> None:
    plain = a_bench(("ramp",))
    points = [
        point.model_copy(update={"rule": f"{point.rule}{EVIL}", "label": EVIL, "workload": EVIL})
        for point in plain.points
    ]
    workloads = [plain.workloads[0].model_copy(update={"name": EVIL, "notes": [EVIL]})]
    evil = plain.model_copy(update={"points": points, "workloads": workloads, "policy": EVIL, "protocol": [EVIL]})
    seen = _Seen(html.render(html.bench_page(evil)))
    assert seen.tags.count("script") == 1
    assert "img" not in seen.tags
    assert not any(name.startswith("on") for name in seen.attributes)


def test_the_script_is_the_one_that_the_policy_of_the_page_allows() -> None:
    """The browser refuses any other: also one that an escaping bug would let in."""
    page = html.render(html.page(a_result()))
    allowed = re.search(r"sha256-([A-Za-z0-9+/=]+)", page)
    script = page.rsplit("<script>", 1)[1].split("</script>", 1)[0]
    assert allowed is not None
    assert allowed.group(1) == html.digest(script)
    assert "unsafe-eval" not in page
    assert "script-src &#x27;unsafe-inline" not in page


def test_a_day_stays_small_and_loses_no_peak() -> None:
    result = a_result(24.0)
    ttft = list(result.series.slo_values[0])
    ttft[3000] = 7.77
    result = result.model_copy(update={"series": result.series.model_copy(update={"slo_values": [ttft, ttft]})})
    page = html.render(html.page(result))
    assert len(page.encode()) < 1_500_000
    found = sheet.of(result)
    points = sheet.thin(found.at_s, ttft, 450, found.end_s)
    assert max(value for stretch in points for _, value in stretch) == 7.77
    assert sum(map(len, points)) <= 4 * 450 + 2
    assert "7.77" in json.dumps(_data_of(page)["rows"])


def test_thinning_keeps_gaps_and_ends() -> None:
    at_s = [float(index) for index in range(1000)]
    values: list[float | None] = [float(index % 7) for index in range(1000)]
    values[400:500] = [None] * 100
    before, after = sheet.thin(at_s, values, 10, 1000.0)
    assert (before[0], before[-1], after[0], after[-1]) == ((0.0, 0.0), (399.0, 0.0), (500.0, 3.0), (999.0, 5.0))
    assert {value for _, value in before} >= {0.0, 6.0}
    assert before == sorted(before)


def test_missing_values_are_not_drawn_as_zero() -> None:
    plain = a_result()
    lost = len(plain.series.at_s)
    series = plain.series.model_copy(
        update={"utilization": [None] * lost, "busy": [None] * lost, "compute": [None] * lost, "memory": [None] * lost,
                "slo_values": [[None] * lost, [None] * lost]}
    )  # fmt: skip
    result = plain.model_copy(update={"series": series, "time_in_band": None, "attainment_both": None})
    page = html.render(html.page(result))
    assert '<path class="l utilization' not in page
    assert '<path class="l latency' not in page
    assert "GPU activity" not in page
    assert "not known" in page


def test_a_short_and_idle_run_has_a_report(tmp_path: Path) -> None:
    """One interval, nothing asked for, no replicas, nothing moved."""
    plain = a_result(15 / 3600)
    zero = {name: [0] for name in ("ready", "pending", "wanted", "cap", "running", "waiting")}
    none = {name: [0.0] for name in ("arrived_per_s", "finished_per_s", "failed_per_s")}
    empty = plain.model_copy(
        update={
            "series": plain.series.model_copy(update={**zero, **none, "utilization": [None]}),
            "moves": [], "warmup_s": 0.0, "gpu_hours": 0.0, "gpu_hours_wasted": 0.0,
            "requests": Counts(arrived=0, finished=0, errors=0, rejected=0, unserved=0),
        }
    )  # fmt: skip
    page = html.render(html.page(empty))
    _Seen(page)
    assert "Moves</b>" not in page
    figures.png(empty, tmp_path / "empty.png")


def test_overload_beyond_the_axis_is_told() -> None:
    plain = a_result()
    values = [4.1, *plain.series.utilization[1:]]
    found = sheet.of(plain.model_copy(update={"series": plain.series.model_copy(update={"utilization": values})}))
    panel = next(part for part in found.parts if part.title == "Utilisation")
    assert isinstance(panel, sheet.Panel)
    assert (panel.limits[1], panel.note) == (200.0, "reaches 410 %, beyond the axis")


def test_moves_close_together_share_a_mark_that_tells_all() -> None:
    moves = [
        Move(at_s=2000 + index, replicas_from=index + 1, replicas_to=index + 2, cap_from=None, cap_to=None,
             reason="DemandRose", why=f"number {index}")
        for index in range(3)
    ]  # fmt: skip
    found = sheet.of(a_result(moves=moves))
    assert [len(group) for group in svg.grouped(found)] == [3]
    lane = svg.lane(found)
    assert all(f"number {index}" in lane for index in range(3))
    assert 'class="move up"' in lane


def test_a_strip_of_a_long_run_shows_what_is_most_frequent() -> None:
    count = 9000
    found = sheet.Sheet(
        at_s=tuple(float(index + 1) for index in range(count)), end_s=count, unjudged_s=0, parts=(), events=()
    )
    states = tuple("Mixed" if index % 10 == 0 else "Efficient" for index in range(count))
    shown = list(svg.stretches(found, sheet.Strip(title="", states=states, shares=())))
    assert shown == [(0.0, float(count), "Efficient")]


@pytest.mark.parametrize(
    ("span_s", "origin_s", "first", "last"),
    [
        (3600.0, None, "0", "1 h"),
        (86400.0, None, "0", "24 h"),
        (90.0, None, "0", "1:30"),
        (3600.0, 1_700_000_100.0, "22:15", "23:15"),
        (10 * 86400.0, None, "0", "10 d"),
    ],
)
def test_the_time_axis_is_readable(span_s: float, origin_s: float | None, first: str, last: str) -> None:
    found = axes.time(span_s, origin_s)
    assert 4 <= len(found) <= 13
    assert (found[0][1], found[-1][1]) == (first, last)
    assert all(0 <= at_s <= span_s for at_s, _ in found)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.034), (0, 97), (0, 12345), (20, 110)])
def test_linear_ticks_are_few_and_round(low: float, high: float) -> None:
    found = axes.linear(low, high)
    assert 2 <= len(found) <= 6
    assert len({label for _, label in found}) == len(found)


@pytest.mark.parametrize(("low", "high"), [(20, 900), (0.1, 5000), (3, 4), (1e-3, 1e3)])
def test_logarithmic_ticks_are_few_and_never_none(low: float, high: float) -> None:
    found = axes.logarithmic(low, high)
    assert 1 <= len(found) <= 5
    assert all(low <= value <= high for value, _ in found)


def test_latencies_that_span_decades_are_logarithmic() -> None:
    narrow = sheet.slo_panel(_slo(0.9), [0.2, 0.4])
    wide = sheet.slo_panel(_slo(0.9), [0.02, 40.0, None])
    assert (narrow.log, wide.log) == (False, True)
    assert wide.limits[0] > 0


def test_pictures_are_drawn(tmp_path: Path) -> None:
    figures.png(a_result(), tmp_path / "run.png")
    figures.png_bench(a_bench(("ramp", "waves")), tmp_path / "bench.png")
    for name in ("run.png", "bench.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width >= 1400
            assert len(picture.convert("L").resize((64, 64)).getcolors(4096) or ()) > 20


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        html.write(a_result(), tmp_path / f"{name}.html")
        figures.png(a_result(), tmp_path / f"{name}.png")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_the_page_needs_no_plotting_library() -> None:
    """Its import and its font cache cost seconds on a fresh machine."""
    code = "import sys; import bandkeeper.lab.report.html; print('matplotlib' in sys.modules, 'numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_comparison_says_who_was_better() -> None:
    bench = a_bench(("ramp", "waves"))
    found = {one.rule: one for one in plane.standings(bench)}
    ours = [point for point in bench.points if point.is_ours and point.is_best]
    assert found["Bandkeeper"].met == sum(point.meets_goal for point in ours)
    assert found["Bandkeeper"].cost == pytest.approx(sum(point.relative or 0 for point in ours) / 2)
    assert plane.headline(bench).startswith("Bandkeeper met every goal on ")
    assert "; the best peer, " in plane.headline(bench)
    best_peer = next(one for one in plane.standings(bench) if not one.ours and not one.hindsight)
    assert best_peer.rule in plane.headline(bench)


def test_a_front_holds_what_no_other_setting_beats() -> None:
    bench = a_bench(("ramp",))
    (found,) = plane.planes_of(bench)
    for curve in found.curves:
        for spot in curve.spots:
            beaten = any(
                (other.gpu_hours <= spot.gpu_hours and other.misses < spot.misses)
                or (other.gpu_hours < spot.gpu_hours and other.misses <= spot.misses)
                for other in curve.spots
            )  # fmt: skip
            assert (spot in curve.front) is not beaten


def test_the_height_of_a_point_is_its_worst_promise() -> None:
    bench = a_bench(("ramp",))
    point = bench.points[0].model_copy(update={"attainment": [0.97, 0.95], "rule": "one", "label": "only"})
    (found,) = plane.planes_of(bench.model_copy(update={"points": [point]}))
    assert found.curves[0].spots[0].misses == pytest.approx(3.0)  # 3 % of misses where 1 % is permitted


def test_a_setting_that_serves_nobody_does_not_stretch_the_axis() -> None:
    bench = a_bench(("ramp",))
    lost = bench.points[0].model_copy(update={"gpu_hours": 0.1, "attainment": [0.0, 0.0], "label": "none"})
    (plain,), (found,) = (
        plane.planes_of(one) for one in (bench, bench.model_copy(update={"points": [*bench.points, lost]}))
    )
    assert found.limits == plain.limits
    assert "none" in html.render(html.bench_page(bench.model_copy(update={"points": [*bench.points, lost]})))


def test_seeds_are_averaged() -> None:
    bench = a_bench(("ramp",))
    points = [
        bench.points[0].model_copy(update={"seed": seed, "gpu_hours": hours, "attainment": [kept, None]})
        for seed, hours, kept in ((1, 10.0, 0.99), (2, 14.0, 0.97))
    ]
    (found,) = plane.planes_of(bench.model_copy(update={"points": points}))
    (spot,) = found.curves[0].spots
    assert spot.gpu_hours == 12.0
    assert spot.misses == pytest.approx(2.0)


def test_a_comparison_without_bound_or_ours_has_a_page() -> None:
    bench = a_bench(("ramp",))
    points = [
        point.model_copy(update={"relative": None, "is_bound": False})
        for point in bench.points
        if not point.is_ours and not point.is_hindsight
    ]
    page = html.render(html.bench_page(bench.model_copy(update={"points": points})))
    _Seen(page)
    assert "bound" not in plane.headline(bench.model_copy(update={"points": points}))


def test_a_result_from_json_gives_the_same_page() -> None:
    result = a_result()
    again = Result.model_validate_json(result.model_dump_json())
    assert html.render(html.page(again)) == html.render(html.page(result))
