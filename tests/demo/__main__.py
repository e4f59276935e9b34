"""`python -m tests.demo`: plays the scenario on a local control plane and writes the report."""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import time
from pathlib import Path

import yaml
from rich.console import Console

from tests.cluster import eventually
from tests.stack import OperatorProcess, Stack

from . import picture, preview, report
from .figures import best_cap, figures, intervals
from .picture import Course
from .record import Recorder, as_json, latencies
from .scenario import (
    CAPACITY,
    EMULATOR,
    GPUS_PER_POD,
    INTERVAL_S,
    LOAD,
    LOAD_S,
    MEMBERS,
    NAMESPACE,
    NODES,
    PODS,
    SETTING,
    SETTINGS,
    WARM_UP_S,
    sustainable_per_s,
)
from .screen import Screen, summary

LOOK_EVERY_S = 1.0
PLAIN_WIDTH = 160
SETTLE_S = 2.0  # the last scrape of the last interval
WORST_LAG_S = 1.0


class BrokenError(RuntimeError):
    """The demo cannot go on; the message says what broke."""


def main() -> int:
    """Returns the exit status: 0 when it ran to its end, 1 when something broke, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="directory for the report (%(default)s)")
    out: Path = parser.parse_args().out
    _clear(out)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PLAIN_WIDTH)
    try:
        _demo(console, out)
    except KeyboardInterrupt:
        console.print("Interrupted; nothing is left running.")
        return 130
    except Exception as error:
        console.print(f"[bold red]The demo broke:[/] {error}", soft_wrap=True)
        if (out / "logs").exists():
            console.print(f"Logs: {out / 'logs'}")
        return 1
    return 0


def _clear(out: Path) -> None:
    """Takes away what an earlier run left; the report of `tests.demo.preview` may lie there too, and stays."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "logs", ignore_errors=True)
    for path in out.iterdir():
        if path != preview.REPORT and path.is_file():
            path.unlink()


def _demo(console: Console, out: Path) -> None:
    began_s = time.monotonic()
    console.print("[bold]Bandkeeper demo[/]: one load, three objectives, a real control plane, emulated GPU servers.")
    with Stack(emulator=EMULATOR, nodes=NODES, namespace=NAMESPACE, settings=SETTINGS) as stack:
        try:
            console.print(f"Control plane, Prometheus and servers are up after {time.monotonic() - began_s:.0f} s.")
            operator = _prepare(console, stack)
            recorder = _play(console, stack, operator)
            courses = _courses(stack, recorder)
            texts = _texts(stack)
            _warn_if_slow(console, stack)
        finally:
            shutil.copytree(stack.logs, out / "logs")
    _write(out, recorder, courses, texts)
    console.print(summary(courses))
    took_s = time.monotonic() - began_s
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = (used.ru_utime + used.ru_stime) / took_s
    console.print(
        f"Took {took_s:.0f} s and {cores:.1f} cores. Report: {out / 'report.html'}, picture: {out / 'report.png'}"
    )


def _prepare(console: Console, stack: Stack) -> OperatorProcess:
    """Workloads, policies, operator; returns once all pods are ready and every policy has a decision."""
    for member in MEMBERS:
        stack.deploy(member.name, replicas=member.replicas, **PODS)
        stack.apply_policy(member.document)
    for member in MEMBERS:
        stack.wait_ready(member.name, member.replicas)
    time.sleep(WARM_UP_S)  # until requests come and go at an even rate
    operator = stack.start_operator()

    def decided() -> bool:
        _check(operator)
        return all(stack.policy(member.name).get("status", {}).get("lastDecision") for member in MEMBERS)

    eventually(decided, timeout_s=30, every_s=0.5, what="a decision in the status of every policy")
    console.print(f"{len(MEMBERS)} policies are in force; the load begins and lasts {LOAD_S} s.")
    return operator


def _check(operator: OperatorProcess) -> None:
    if not operator.alive:
        raise BrokenError(f"the operator ended with status {operator.child.popen.returncode}:\n{operator.child.tail()}")


def _play(console: Console, stack: Stack, operator: OperatorProcess) -> Recorder:
    """The load, looked at once a second until it is over."""
    recorder = Recorder(stack, operator, [member.name for member in MEMBERS], stack.load_all(LOAD))
    screen = Screen(console, LOAD_S)
    with screen.live():
        while recorder.at_s < LOAD_S + SETTLE_S:
            _check(operator)
            recorder.look()
            screen.show(recorder)
            time.sleep(max(0.0, LOOK_EVERY_S - recorder.at_s % LOOK_EVERY_S))
    return recorder


def _warn_if_slow(console: Console, stack: Stack) -> None:
    """The figures mean little where the emulated servers could not keep up with the clock."""
    lag_s = stack.emulator_health()["worst_lag_s"]
    if lag_s > WORST_LAG_S:
        console.print(f"[yellow]This machine was too busy: the emulated servers were up to {lag_s:.1f} s late.[/]")


def _courses(stack: Stack, recorder: Recorder) -> list[Course]:
    ends_s = [float(end) for end in range(INTERVAL_S, LOAD_S + 1, INTERVAL_S)]
    seen = latencies(stack.prometheus, began_s=recorder.began_s, ends_s=ends_s, length_s=INTERVAL_S)
    courses = []
    for member in MEMBERS:
        samples = [one for one in recorder.samples[member.name] if one.at_s < LOAD_S + LOOK_EVERY_S]
        cut = intervals(samples, INTERVAL_S, seen.get(member.name, {}))
        policy = member.policy
        sustained = sustainable_per_s(best_cap(policy, CAPACITY))
        found = figures(samples, cut, policy=policy, sustainable_per_s=sustained, gpus_per_pod=GPUS_PER_POD)
        courses.append(
            Course(
                name=member.name,
                policy=policy,
                sustainable_per_s=sustained,
                samples=samples,
                intervals=cut,
                figures=found,
                moves=[move for move in recorder.moves if move.name == member.name],
            )
        )
    return courses


def _texts(stack: Stack) -> dict[str, str]:
    """What kubectl shows at the end, by file name."""
    name = MEMBERS[0].name
    kubectl = stack.cluster.kubectl
    return {
        "kubectl-get.txt": kubectl("get", "gsp", "-n", NAMESPACE),
        "describe.txt": kubectl("describe", "gsp", name, "-n", NAMESPACE),
        "events.txt": kubectl("events", "--for", f"gpuscalingpolicy/{name}", "-n", NAMESPACE),
        "operator.log": next(iter(stack.operators.values())).log(),
    }


def _write(out: Path, recorder: Recorder, courses: list[Course], texts: dict[str, str]) -> None:
    for file_name, text in texts.items():
        (out / file_name).write_text(text, encoding="utf-8")
    (out / "samples.json").write_text(as_json(recorder.samples), encoding="utf-8")
    picture.draw(courses, out / "report.png")
    policies = "---\n".join(yaml.safe_dump(member.document, sort_keys=False) for member in MEMBERS)
    shown = {
        "kubectl get gsp, at the end": texts["kubectl-get.txt"],
        f"Events of {MEMBERS[0].name}": texts["events.txt"],
        f"kubectl describe gsp {MEMBERS[0].name}": texts["describe.txt"],
        "The policies": policies,
    }
    report.write(out / "report.html", courses, out / "report.png", setting=SETTING, texts=shown)


if __name__ == "__main__":
    sys.exit(main())
