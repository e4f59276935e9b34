"""The Dockerfile keeps its promises, as far as reading it can tell: the build itself needs root and a base image."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
Instruction = tuple[str, str]


def stages() -> list[list[Instruction]]:
    """The Dockerfile's instructions (word, rest) by stage, comments and continuation lines resolved."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found: list[list[Instruction]] = [[]]
    for line in filter(None, lines):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest.strip()))
    return found[1:]


def last(stage: list[Instruction], word: str) -> str:
    return [rest for name, rest in stage if name == word][-1]


def test_the_final_stage_is_not_the_one_that_builds() -> None:
    build, final = stages()
    assert last(build, "FROM").endswith(" AS build")
    assert last(final, "FROM") == last(build, "FROM").removesuffix(" AS build")  # the environment moves over as it is
    assert [rest for word, rest in final if word in ("COPY", "ADD")] == ["--from=build /opt/bandkeeper /opt/bandkeeper"]


def test_everything_downloaded_is_checked_by_hash_and_nothing_is_compiled() -> None:
    build, final = stages()
    installs = [
        command
        for word, rest in build
        if word == "RUN"
        for command in rest.split("&&")
        if re.search(r"pip\b.* install", command)
    ]
    assert len(installs) == 3
    for command in installs:
        from_lock = "--require-hashes" in command and "--only-binary :all:" in command
        assert from_lock or ("--no-deps" in command and "--no-index" in command), command
    assert not any("pip" in rest for word, rest in final if word == "RUN")
    assert "--without-pip /opt/bandkeeper" in " ".join(rest for _, rest in build)
    assert not any(word == "ADD" or "curl" in rest or "wget" in rest for word, rest in build + final)


def test_the_build_tools_taken_from_the_development_lock_are_there() -> None:
    build, _ = stages()
    names = re.search(r"/\^\((.*?)\)==/", " ".join(rest for _, rest in build))
    assert names is not None
    locked = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "dev.lock").read_text(), flags=re.MULTILINE)
    assert set(names[1].split("|")) <= set(locked)


def test_the_lock_can_be_installed_by_hash_alone_and_names_no_index() -> None:
    lock = (ROOT / "requirements" / "runtime.lock").read_text()
    assert "--hash=sha256:" in lock
    assert "index-url" not in lock
    pinned = re.findall(r"^[a-z].*$", lock, flags=re.MULTILINE)
    assert all("==" in line for line in pinned)


def test_it_runs_as_the_charts_user_and_stops_on_the_signal_that_the_operator_handles() -> None:
    _, final = stages()
    values = yaml.safe_load((ROOT / "charts" / "bandkeeper" / "values.yaml").read_text())
    security = values["podSecurityContext"]
    assert last(final, "USER") == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert last(final, "STOPSIGNAL") == "SIGTERM"
    assert last(final, "EXPOSE") == str(values["metrics"]["port"])


def test_it_needs_no_writable_root() -> None:
    _, final = stages()
    environment = dict(item.split("=", 1) for item in last(final, "ENV").split())
    assert environment["HOME"] == last(final, "WORKDIR") == "/tmp"
    assert environment["PYTHONDONTWRITEBYTECODE"] == environment["PYTHONUNBUFFERED"] == "1"
    assert environment["USER"]  # kopf asks for it, and the numeric user has no entry in /etc/passwd


def test_its_command_is_the_one_that_the_package_and_the_chart_know() -> None:
    _, final = stages()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (entry,) = yaml.safe_load(last(final, "ENTRYPOINT"))
    assert entry in scripts
    chart = (ROOT / "charts" / "bandkeeper" / "templates" / "deployment.yaml").read_text()
    assert f"args: [{', '.join(yaml.safe_load(last(final, 'CMD')))}]" in chart


def test_it_carries_the_version_and_the_licence() -> None:
    _, final = stages()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "charts" / "bandkeeper" / "Chart.yaml").read_text())
    assert last(final, "ARG") == f"VERSION={version}"
    assert chart["appVersion"] == version
    assert 'org.opencontainers.image.licenses="Apache-2.0"' in last(final, "LABEL")
    assert 'org.opencontainers.image.version="${VERSION}"' in last(final, "LABEL")


def test_all_that_is_copied_is_sent_to_the_builder_and_nothing_else() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*"
    sent = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    build, _ = stages()
    copied = {source.rstrip("/") for word, rest in build if word == "COPY" for source in rest.split()[:-1]}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    assert not fnmatch.filter(sent, "tests*")
