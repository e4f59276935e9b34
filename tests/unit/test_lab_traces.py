"""Trace files: every format, and what becomes of each kind of damage."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bandkeeper.lab.requests import Requests
from bandkeeper.lab.workloads import LoadError, traces

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:15:51.2224670,879,55\n"
)
BURSTGPT_1 = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,230,1317,Conversation log\n"
    '118,GPT-4,417,276,693,"API log"\n'
)
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "0.5,17,3.25,GPT-4,100,20,120,API log\n"
    "1.5,18,0.75,GPT-4,200,30,230,API log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'
    '{"timestamp": 3052, "input_length": 7322, "output_length": 26, "hash_ids": []}\n'
)

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_to(content: str | bytes) -> Path:
        path = tmp_path / "trace.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_to


def rows(requests: Requests) -> list[tuple[float, int, int]]:
    columns = (requests.arrival_s.round(6).tolist(), requests.prompt_tokens.tolist(), requests.output_tokens.tolist())
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("content", "expected", "name"),
    [
        (AZURE, [(0, 374, 44), (4.314579, 396, 109), (4.541877, 879, 55)], "Azure LLM trace"),
        (BURSTGPT_1, [(0, 472, 18), (40, 1087, 230), (113, 417, 276)], "BurstGPT trace"),
        (BURSTGPT_3, [(0, 100, 20), (1, 200, 30)], "BurstGPT trace"),
        (MOONCAKE, [(0, 6955, 52), (3.052, 7322, 26)], "Mooncake trace"),
        (
            "timestamp,prompt_tokens,output_tokens\n1,5,6\n2.5,7,8\n",
            [(0, 5, 6), (1.5, 7, 8)],
            "times with lengths trace",
        ),
        ("10\n11.5\n", [(0, 1155, 211), (1.5, 1155, 211)], "times trace"),
        ("timestamp\n10\n11.5\n", [(0, 1155, 211), (1.5, 1155, 211)], "times trace"),
        ("2024-05-10 00:00:00Z\n2024-05-10T02:00:01.5+02:00\n", [(0, 1155, 211), (1.5, 1155, 211)], "times trace"),
        ("timestamp\n1700000000\n1700000001\n", [(0, 1155, 211), (1, 1155, 211)], "times trace"),
    ],
)
def test_formats_are_told_by_the_first_line(
    write: Write, content: str, expected: list[tuple[float, int, int]], name: str
) -> None:
    requests = traces.read(write(content), skip_bad=False)
    assert rows(requests) == expected
    assert requests.notes[0] == name
    assert requests.name == "trace.csv"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
        lambda text: "\n" + text.replace("\n", "\n\n") + "  \n",
        lambda text: text.replace(",", " , "),
        lambda text: gzip.compress(text.encode()),
        lambda text: gzip.compress(("\ufeff" + text.replace("\n", "\r\n")).encode()),
        lambda text: text.replace("TIMESTAMP,ContextTokens", "timestamp,CONTEXTTOKENS"),
    ],
)
def test_spelling_does_not_matter(write: Write, damage: Callable[[str], str | bytes]) -> None:
    plain = rows(traces.read(write(AZURE), skip_bad=False))
    assert rows(traces.read(write(damage(AZURE)), skip_bad=False)) == plain
    assert len(traces.read(write(damage(MOONCAKE)), skip_bad=False)) == 2


def test_lengths_of_plain_times_can_be_given(write: Write) -> None:
    requests = traces.read(write("1\n2\n"), skip_bad=False, prompt_tokens=10, output_tokens=20)
    assert rows(requests) == [(0, 10, 20), (1, 10, 20)]
    assert "every request has 10 prompt and 20 output tokens" in requests.notes[-1]


def test_the_duration_gives_the_rate(write: Write) -> None:
    even = "\n".join(str(second) for second in range(11))
    assert traces.read(write(even), skip_bad=False).duration_s == pytest.approx(11.0)
    assert traces.read(write("7\n"), skip_bad=False).duration_s == 1.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2023-11-16 18:15:52,x,5", "line 5: ContextTokens is 'x', not a whole number of tokens"),
        ("2023-11-16 18:15:52,nan,5", "line 5: ContextTokens is 'nan', not a whole number"),
        ("2023-11-16 18:15:52,inf,5", "line 5: ContextTokens is 'inf', not a whole number"),
        ("2023-11-16 18:15:52,1.5,5", "line 5: ContextTokens is '1.5', not a whole number"),
        ("2023-11-16 18:15:52,,5", "line 5: ContextTokens is missing"),
        ("2023-11-16 18:15:52,-3,5", "line 5: ContextTokens is '-3'; it must be from 1 to 10,000,000"),
        ("2023-11-16 18:15:52,5,0", "line 5: GeneratedTokens is '0'; it must be from 1"),
        ("2023-11-16 18:15:52,5,10000001", "line 5: GeneratedTokens is '10000001'; it must be"),
        ("2023-11-16 18:15:52,5", "line 5: does not have TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("2023-11-16 25:15:52,5,5", "line 5: TIMESTAMP is '2023-11-16 25:15:52', not a time"),
        ("2023-11-16,5,5", "line 5: TIMESTAMP is '2023-11-16', not a time"),
        ("NaT,5,5", "line 5: TIMESTAMP is 'NaT', not a time"),
        ("nan,5,5", "line 5: TIMESTAMP is 'nan', not a time"),
        (",5,5", "line 5: TIMESTAMP is missing, not a time"),
        ("-1,5,5", "line 5: TIMESTAMP is '-1', before 0"),
        ("1700158552000,5,5", "line 5: TIMESTAMP is '1700158552000': too large for seconds; are these milli"),
        ("today,5,5", "line 5: TIMESTAMP is 'today', not a time"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_and_reason_or_skipped_and_counted(
    write: Write, row: str, said: str
) -> None:
    path = write(AZURE + row + "\n2023-11-16 18:15:53.5,7,8\n")
    with pytest.raises(LoadError, match="1 of 5 rows cannot be used; --skip-bad") as refused:
        traces.read(path, skip_bad=False)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)
    skipped = traces.read(path, skip_bad=True)
    assert len(skipped) == 4
    assert rows(skipped)[-1][1:] == (7, 8)
    assert "1 of 5 rows could not be used and were left out" in skipped.notes[1]
    assert said in skipped.notes[1]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "5",
        "null",
        '{"timestamp": 5}',
        '{"timestamp": 5, "input_length": null, "output_length": 1}',
        "[" * 100_000,
    ],
    ids=lambda line: line[:40],
)
def test_a_bad_json_line_is_refused_or_skipped(write: Write, line: str) -> None:
    path = write(MOONCAKE + line + "\n")
    with pytest.raises(LoadError, match=r"1 of 3 rows cannot be used(.|\n)*line 3: "):
        traces.read(path, skip_bad=False)
    assert len(traces.read(path, skip_bad=True)) == 2


def test_five_bad_rows_are_named_and_all_are_counted(write: Write) -> None:
    monday = "".join(f"2023-11-20 00:{minute:02}:00,{'x' if minute % 2 else 5},5\n" for minute in range(60))
    path = write(AZURE.splitlines(keepends=True)[0] + monday)
    with pytest.raises(LoadError, match="30 of 60 rows") as refused:
        traces.read(path, skip_bad=False)
    lines = str(refused.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:6]] == [f"  line {number}" for number in (3, 5, 7, 9, 11)]
    assert lines[6:] == ["  and 25 more"]
    assert len(traces.read(path, skip_bad=True)) == 30


def test_rows_are_numbered_across_chunks_and_quoted_line_breaks(write: Write) -> None:
    many = "".join(f"{second},m,1,1,2,log\n" for second in range(60_000))
    text = BURSTGPT_1.splitlines(keepends=True)[0] + '0,"a\nb",1,1,2,log\n' + many + "\n60001,m,?,1,2,log\n"
    with pytest.raises(LoadError, match=r"1 of 60002 rows(.|\n)*line 60005: Request tokens is '\?'"):
        traces.read(write(text), skip_bad=False)


def test_bursts_failed_requests_are_left_out_and_counted(write: Write) -> None:
    requests = traces.read(write(BURSTGPT_1 + "119,GPT-4,10,0,10,API log\n"), skip_bad=False)
    assert len(requests) == 3
    assert requests.notes[1] == "left out: 1 without response tokens (they failed when recorded)"
    with pytest.raises(LoadError, match="no request in it, only 1 failed ones"):
        traces.read(write(BURSTGPT_1.splitlines(keepends=True)[0] + "119,GPT-4,10,0,10,API log\n"), skip_bad=False)


def test_small_steps_back_are_sorted_and_counted(write: Write) -> None:
    requests = traces.read(write("100\n160\n101\n161\n"), skip_bad=False)
    assert requests.arrival_s.tolist() == [0, 1, 60, 61]
    assert requests.notes[1] == "times went back (rows: 1) by up to 59 s at line 3; they were sorted"


def test_a_sort_takes_the_lengths_along_and_starts_at_the_first_request(write: Write) -> None:
    text = "timestamp,prompt_tokens,output_tokens\n30,3,30\n10,1,10\n20,2,20\n"
    assert rows(traces.read(write(text), skip_bad=False)) == [(0, 1, 10), (10, 2, 20), (20, 3, 30)]


def test_large_steps_back_are_refused_unless_told(write: Write) -> None:
    path = write("100\n200\n101\n201\n")
    with pytest.raises(LoadError, match=r"times go back \(rows: 1\) by up to 99 s at line 3; put the rows in order"):
        traces.read(path, skip_bad=False)
    assert traces.read(path, skip_bad=True).arrival_s.tolist() == [0, 1, 100, 101]


def test_gaps_are_kept_and_told_or_refused_beyond_a_week(write: Write) -> None:
    hours = traces.read(write("0\n1\n7201\n"), skip_bad=False)
    assert hours.arrival_s.tolist() == [0, 1, 7201]
    assert hours.notes[1] == "gaps of more than an hour were kept: 1, the longest 2 hours between lines 2 and 3"
    for skip_bad in (False, True):
        with pytest.raises(LoadError, match="nothing arrives for 194 hours between lines 2 and 3: one of the times"):
            traces.read(write("0\n1\n700000\n"), skip_bad=skip_bad)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
        (AZURE.splitlines()[0], "there is no request in it"),
        ("timestamp\n", "there is no request in it"),
        ("time,size\n1,2\n", "no known header: 'time,size'. Known are"),
        ("timestamp,size\n1,2\n", "no known header"),
        ("2023-11-16 18:15:46.6805900,374,44\n", "no known header"),
        ("x\n", "no known header: 'x'"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        (AZURE.encode("utf-16"), "not text in UTF-8"),
        (b"\x00\xff\xfe" * 9, "not text in UTF-8"),
        (gzip.compress(AZURE.encode())[:-9], "gzip file is damaged"),
        (b"\x1f\x8b" + b"junk" * 9, "gzip file is damaged"),
        (AZURE.splitlines()[0] + "\n" + "a,b,c\n" * 3, "3 of 3 rows cannot be used:"),
        (AZURE + '"' + "x" * 200_000 + '",1,1\n', "line 5: field larger than field limit"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(write: Write, content: str | bytes, said: str) -> None:
    path = write(content)
    for skip_bad in (False, True):
        with pytest.raises(LoadError) as refused:
            traces.read(path, skip_bad=skip_bad)
        assert str(refused.value).startswith(f"{path}: ")
        assert said in str(refused.value)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="No such file"):
        traces.read(tmp_path / "none.csv", skip_bad=False)
    with pytest.raises(LoadError, match="Is a directory"):
        traces.read(tmp_path, skip_bad=False)


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    times_ms = np.sort(rng.integers(0, 10**7, 3000))
    lengths = rng.integers(1, 5000, (2, 3000))
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps({"timestamp": int(at), "input_length": int(prompt), "output_length": int(output)}) + "\n"
            for at, prompt, output in zip(times_ms, *lengths, strict=True)
        )
    )
    requests = traces.read(path, skip_bad=False)
    assert requests.arrival_s == pytest.approx((times_ms - times_ms[0]) / 1000)
    assert (requests.prompt_tokens == lengths[0]).all()
    assert (requests.output_tokens == lengths[1]).all()
