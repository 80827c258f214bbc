"""docs/containers.md: the image's recipe and the cluster's manifests say what Docker, Kubernetes and poolserver take.

Neither is run: an image needs a registry and a daemon. What is ours in them, command lines and configurations, is read
by us, the rest as they would read it.
"""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pages import DOCS, ROOT, blocks

from poolserver import cli
from poolserver.config import load
from poolserver.sections import Config

PAGE = DOCS / "containers.md"

KUBERNETES = "1.32"

STEPS = ["FROM", "COPY", "RUN", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"]
"""The instructions that this test knows, each at least once."""


@pytest.fixture
def image() -> dict[str, list[str]]:
    """The arguments of each instruction of the Dockerfile."""
    (block,) = blocks(PAGE, "dockerfile")
    steps: dict[str, list[str]] = {}
    for line in block.text.splitlines():
        instruction, _, rest = line.partition(" ")
        steps.setdefault(instruction, []).append(rest)
    return steps


@pytest.fixture
def manifests() -> dict[str, Any]:
    """The manifests by their kind."""
    (block,) = blocks(PAGE, "yaml")
    return {each["kind"]: each for each in yaml.safe_load_all(block.text)}


def settings(text: str, folder: Path) -> Config:
    path = folder / "hello.toml"
    path.write_text(text)
    return load(path, {}, {}).config


def shown_file() -> str:
    return next(block.text for block in blocks(PAGE, "toml") if block.file == "hello.toml")


def test_image_runs_a_command_of_ours(image: dict[str, list[str]]) -> None:
    """ENTRYPOINT with CMD, and HEALTHCHECK, in the form that needs no shell."""
    (entry,), (command,), (health,) = image["ENTRYPOINT"], image["CMD"], image["HEALTHCHECK"]
    for words in (json.loads(entry) + json.loads(command), json.loads(health[health.index("[") :])):
        assert words[0] == "poolserver"
        assert cli.cli.commands[words[1]].make_context(words[1], words[2:])


def test_image_has_what_it_needs(image: dict[str, list[str]], tmp_path: Path) -> None:
    """Every instruction is known, what is copied is there, the shell can read what is run, ports are the service's."""
    assert sorted(image) == sorted(STEPS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (base,), ports = image["FROM"], image["EXPOSE"][0].split()
    version = re.fullmatch(r"python:(3\.\d+)-slim", base)
    assert version is not None
    assert f"Programming Language :: Python :: {version[1]}" in project["classifiers"]
    copied = [word for line in image["COPY"] for word in line.split()[:-1]]
    assert set(copied) == {"poolserver", *(block.file for block in blocks(PAGE, "python", "toml") if block.file)}
    for line in image["RUN"]:
        subprocess.run(["sh", "-n", "-c", line], check=True, timeout=30)
    config = settings(shown_file(), tmp_path)
    assert [url.rpartition(":")[2] for url in (*config.server.bind, config.metrics.bind)] == ports
    made = next(line.split()[-1] for line in image["RUN"] if line.startswith("install -d"))
    assert config.control.socket.startswith(f"{made}/")
    user, group = image["USER"][0].split(":")
    assert f"install -d -o {user} -g {group} {made}" in image["RUN"]


@pytest.mark.parametrize("kind", ["ConfigMap", "Deployment", "Service"])
def test_manifest_is_one(manifests: dict[str, Any], kind: str) -> None:
    """Kubernetes knows every field of it."""
    assert kubernetes_validate.validate(manifests[kind], KUBERNETES, strict=True) == KUBERNETES
    assert len(manifests) == 3


def test_cluster_agrees_with_the_service(manifests: dict[str, Any], tmp_path: Path) -> None:
    """The configuration in the manifest is the image's, and what stands around it gives it time, ports and folders."""
    text = manifests["ConfigMap"]["data"]["hello.toml"]
    config = settings(text, tmp_path)
    assert text.replace('pythonpath = ["/srv/hello"]\n', "") == shown_file()
    pod = manifests["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    assert config.timeouts.graceful + config.timeouts.lame_duck + 5 <= grace
    ports = [port["containerPort"] for port in container["ports"]]
    assert [int(url.rpartition(":")[2]) for url in (*config.server.bind, config.metrics.bind)] == ports
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports[1])
    assert manifests["Service"]["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert manifests["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    for words in (["poolserver", *container["args"]], container["livenessProbe"]["exec"]["command"]):
        assert words[0] == "poolserver"
        assert cli.cli.commands[words[1]].make_context(words[1], words[2:])
    assert container["readinessProbe"]["httpGet"]["path"] == "/healthz"
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["spec"]["volumes"]}
    assert os.path.dirname(config.control.socket) == mounted["run"]  # noqa: PTH120 - of a path that is not here
    assert container["args"][-1] == f"{mounted['config']}/hello.toml"
