"""By hand: `python -m tests.cluster up`, `… build`, `… kubectl -- ARGS`."""

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from tests.cluster.build import BuildError, build_all
from tests.cluster.control_plane import ControlPlane
from tests.cluster.crds import find_crds
from tests.cluster.processes import ProcessError
from tests.cluster.tools import find_tools


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A local control plane for tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build or find all programs and the CRDs of others, and say where they are")
    up = commands.add_parser("up", help="start a control plane and keep it until Ctrl-C or SIGTERM")
    up.add_argument("--nodes", type=int, default=2, help="GPU nodes (default: %(default)s)")
    up.add_argument("--gpus-per-node", type=int, default=8, help="GPUs of each (default: %(default)s)")
    up.add_argument("--keep", action="store_true", help="keep the run directory with its logs")
    kubectl = commands.add_parser("kubectl", help="run the kubectl of the tests on $KUBECONFIG")
    kubectl.add_argument("args", nargs=argparse.REMAINDER, help="-- and kubectl's own arguments")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.command == "build":
            _build()
        elif options.command == "up":
            _up(options.nodes, options.gpus_per_node, keep=options.keep)
        else:
            _kubectl(options.args)
    except (BuildError, ProcessError) as failure:
        print(f"tests.cluster: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _build() -> None:
    for name, folder in build_all().items():
        print(f"{name}\t{folder}")
    print(f"clients\t{find_tools().kubectl.parent}")
    print(f"crds\t{find_crds()}")


def _up(nodes: int, gpus_per_node: int, *, keep: bool) -> None:
    build_all()
    with ControlPlane.start(nodes=nodes, gpus_per_node=gpus_per_node, keep_run_dir=keep) as control_plane:
        print(
            f"Up after {control_plane.started_in_s:.1f} s at {control_plane.url}. In another terminal:\n\n"
            f"  export KUBECONFIG={control_plane.kubeconfig}\n"
            f"  python -m tests.cluster kubectl -- get nodes\n\n"
            f"Logs are in {control_plane.run_dir / 'logs'}. Ctrl-C ends everything.",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            while not (dead := control_plane.dead_note()):
                time.sleep(1)
            raise ProcessError(dead.strip())


def _kubectl(args: list[str]) -> None:
    kubeconfig = os.environ.get("KUBECONFIG")
    if not kubeconfig or not Path(kubeconfig).is_file():
        raise BuildError("set KUBECONFIG to the file that `python -m tests.cluster up` prints")
    kubectl = str(find_tools().kubectl)
    os.execv(kubectl, [kubectl, *(args[1:] if args[:1] == ["--"] else args)])


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
