"""The batch cap inside a Ray Serve config: found, read and changed with everything else left as it is. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from bandkeeper.actuate.errors import AdapterError

Config = Mapping[str, Any]

DEFAULT_APPLICATION = "default"  # an application without a name has this one
MOST_CHARACTERS = 64 * 1024  # 2 s of reading; a config is of some hundred lines
MOST_DIGITS = 9
MOST_NAMES, MOST_QUOTED = 10, 200
_KEPT = ("proxy_location", "http_options", "grpc_options", "target_capacity")


@dataclass(frozen=True, slots=True, kw_only=True)
class CapPlace:
    """Where the cap stands: a key of the `user_config` of one deployment of one application."""

    application: str
    deployment: str
    key: str

    def __str__(self) -> str:
        return f"user_config.{self.key} of deployment {self.deployment} in application {self.application}"


def cap_in(config: Config, place: CapPlace) -> int:
    """The cap that a config sets. Raises AdapterError where it sets none that could be changed."""
    return _number(_user_config(config, place)[place.key], place)


def with_cap(config: Config, place: CapPlace, cap: int) -> dict[str, Any]:
    """A copy of the config with another cap. Raises AdapterError as `cap_in` does."""
    changed = copy.deepcopy(dict(config))
    cap_in(changed, place)
    _user_config(changed, place)[place.key] = cap
    return changed


def deployed_config(details: Config) -> dict[str, Any]:
    """The config that is deployed, from the answer of GET /api/serve/applications/: put back, it changes nothing.

    Applications that the cluster was not given by a config (`serve.run`) are not in it, and stay as they are. Raises
    AdapterError while the config of one that would be deleted by its absence is not told.
    """
    applications = []
    for name, one in (details.get("applications") or {}).items():
        config = one.get("deployed_app_config")
        if config is not None:
            applications.append(config)
        elif one.get("source") == "declarative" and one.get("status") != "DELETING":
            raise AdapterError(f"Ray Serve does not tell the config of application {name} yet; nothing was changed")
    kept = {name: details[name] for name in _KEPT if details.get(name) is not None}
    return {**kept, "applications": applications}


def text_with_cap(text: str, place: CapPlace, cap: int) -> str:
    """YAML text with another cap: one number is replaced, every other character stays. Raises AdapterError."""
    number = _cap_node(text, place)
    return f"{text[: number.start_mark.index]}{cap}{text[number.end_mark.index :]}"


def cap_in_text(text: str, place: CapPlace) -> int:
    """The cap that YAML text sets. Raises AdapterError where it sets none that could be changed."""
    return int(_cap_node(text, place).value)


def few(names: Sequence[object]) -> str:
    """Names for a sentence; not all of them where that would be a page."""
    shown = ", ".join(map(str, names[:MOST_NAMES]))
    return shown if len(names) <= MOST_NAMES and len(shown) <= MOST_QUOTED else f"{shown[:MOST_QUOTED]} ..."


def _maps(items: object) -> list[dict[str, Any]]:
    return [one for one in items if isinstance(one, dict)] if isinstance(items, list) else []


def _user_config(config: Config, place: CapPlace) -> dict[str, Any]:
    applications = _maps(config.get("applications"))
    names = [one.get("name", DEFAULT_APPLICATION) for one in applications]
    if place.application not in names:
        raise AdapterError(_no_application(place, names))
    application = applications[names.index(place.application)]
    deployments = _maps(application.get("deployments"))
    named = [one.get("name") for one in deployments]
    if place.deployment not in named:
        raise AdapterError(_no_deployment(place, named))
    user_config = deployments[named.index(place.deployment)].get("user_config")
    if not isinstance(user_config, dict) or place.key not in user_config:
        raise AdapterError(_no_key(place, list(user_config) if isinstance(user_config, dict) else []))
    return user_config


def _number(value: object, place: CapPlace) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AdapterError(_no_number(place, value))
    return value


def _cap_node(text: str, place: CapPlace) -> yaml.ScalarNode:
    """The number itself, with its place in the text."""
    if len(text) > MOST_CHARACTERS:
        raise AdapterError(
            f"the Serve config has {len(text)} characters, and one of more than {MOST_CHARACTERS} is not edited; "
            "shorten it, or split the RayService"
        )
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        marks = (event.start_mark for event in yaml.parse(text, Loader=yaml.SafeLoader) if _has_anchor(event))
        anchored = {mark.index for mark in marks if mark is not None}
    except (yaml.YAMLError, RecursionError) as error:
        raise AdapterError(f"the Serve config is no YAML that could be read: {_line(error)}") from error
    path = list(_path(root, place))
    if any(node.start_mark.index in anchored for node in path):
        raise AdapterError(f"{place} is shared by a YAML anchor; write it out, so that it can be changed alone")
    number = path[-1]
    if not isinstance(number, yaml.ScalarNode) or not _is_number(number):
        raise AdapterError(_no_number(place, number.value if isinstance(number, yaml.ScalarNode) else "a list or map"))
    return number


def _path(root: yaml.Node | None, place: CapPlace) -> Iterator[yaml.Node]:
    """The nodes from the list of applications to the cap."""
    applications = _child(root, "applications")
    yield from (node for node in (root, applications) if node is not None)
    application, names = _named(applications, place.application, DEFAULT_APPLICATION)
    if application is None:
        raise AdapterError(_no_application(place, names))
    deployments = _child(application, "deployments")
    deployment, names = _named(deployments, place.deployment, None)
    if deployments is None or deployment is None:
        raise AdapterError(_no_deployment(place, names))
    user_config = _child(deployment, "user_config")
    number = _child(user_config, place.key)
    if user_config is None or number is None:
        raise AdapterError(_no_key(place, _keys(user_config)))
    yield from (application, deployments, deployment, user_config, number)


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    found = [value for name, value in node.value if isinstance(name, yaml.ScalarNode) and name.value == key]
    return found[-1] if found else None  # of a repeated key the last one counts


def _keys(node: yaml.Node | None) -> list[str]:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return [name.value for name, _ in pairs if isinstance(name, yaml.ScalarNode)]


def _named(node: yaml.Node | None, name: str, unnamed: str | None) -> tuple[yaml.Node | None, list[str | None]]:
    """The item of a list that has the name, and the names of all."""
    items = node.value if isinstance(node, yaml.SequenceNode) else ()
    names = [unnamed if (child := _child(item, "name")) is None else str(child.value) for item in items]
    return (items[names.index(name)] if name in names else None), names


def _is_number(node: yaml.ScalarNode) -> bool:
    plain = node.tag == "tag:yaml.org,2002:int" and node.style is None
    return plain and node.value.isdecimal() and node.value[0] != "0" and len(node.value) <= MOST_DIGITS


def _has_anchor(event: yaml.Event) -> bool:
    return not isinstance(event, yaml.AliasEvent) and getattr(event, "anchor", None) is not None


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it is nested too deeply"
    return f"{problem}, line {mark.line + 1}" if mark is not None else str(problem)


def _no_application(place: CapPlace, names: list[Any]) -> str:
    there = f"write one of: {few(names)}" if names else "it has none"
    return f"no application {place.application} in the Serve config; {there}"


def _no_deployment(place: CapPlace, names: list[Any]) -> str:
    there = f"there are: {few(names)}" if names else "it lists none"
    return (
        f"no deployment {place.deployment} under application {place.application} of the Serve config; {there}. "
        f"List it there with user_config: {{{place.key}: N}}, N being the capacity that it starts with"
    )


def _no_key(place: CapPlace, keys: list[str]) -> str:
    there = f" (there are: {few(keys)})" if keys else ""
    return (
        f"no {place} in the Serve config{there}; set it there to the capacity that the deployment starts with, and "
        "take it over in its reconfigure()"
    )


def _no_number(place: CapPlace, value: object) -> str:
    return (
        f'{place} is "{few([value])}", not a plain whole number; set it to the capacity that the deployment starts with'
    )
