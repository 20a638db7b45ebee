"""launch/gke_jobset.yaml, filled in as its head says, against the fields in jobset_schema.json; without a cluster."""

import json
import pathlib
import re
import subprocess

import jsonschema
import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
FILE = ROOT / "launch/gke_jobset.yaml"
VALIDATOR = jsonschema.Draft202012Validator(json.loads((ROOT / "tests/jobset_schema.json").read_text()))
HEAD = "".join(line.removeprefix("#") for line in FILE.read_text().splitlines(True) if line.startswith("#"))
SED = [command.replace("\\\n", " ") for command in re.findall(r"^ +(sed (?:.*\\\n)*.*)$", HEAD, re.MULTILINE)]


@pytest.fixture(params=["tpu", "gpu"])
def jobset(request, tmp_path) -> dict:
    """The file after the head's own commands."""
    for command in SED[: 1 if request.param == "tpu" else 2]:
        command = command.replace("launch/gke_jobset.yaml", str(FILE))
        assert subprocess.run(["bash", "-c", command], cwd=tmp_path).returncode == 0
    jobset = yaml.safe_load((tmp_path / ("jaxneg.yaml" if request.param == "tpu" else "jaxneg_gpu.yaml")).read_text())
    jobset["of"] = request.param
    return jobset


def pod_of(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_the_schema_is_one_and_is_strict():
    VALIDATOR.check_schema(VALIDATOR.schema)

    def objects(node):
        if isinstance(node, dict):
            yield from [node] if node.get("type") == "object" else []
            for child in node.values():
                yield from objects(child)

    for found in objects(VALIDATOR.schema):  # no field, or no name of a label, that is not listed
        assert found["additionalProperties"] is False or "enum" in found["propertyNames"]


def test_filled_in_it_fits(jobset):
    of = jobset.pop("of")
    VALIDATOR.validate(jobset)
    job, pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"], pod_of(jobset)
    (container,) = pod["containers"]
    assert job["completions"] == job["parallelism"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    rule = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == container["name"] and rule["values"] == [2]
    script = container["command"][-1]
    assert f"extra={of}" in script.split() and "REPLACE_" not in script
    assert ("tpu" in str(pod["nodeSelector"]) and "google.com/tpu" in container["resources"]["limits"]) == (of == "tpu")
    if of == "gpu":  # the coordinator is the first pod of the job, by the name that JobSet gives it
        name, replicated = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"][0]["name"]
        assert f"coordinator={name}-{replicated}-0-0.{name}:8476" in script
        assert f"--num_processes={job['completions']})" in script
        assert {"containerPort": 8476} in container["ports"]


@pytest.mark.parametrize("jobset", ["tpu"], indirect=True)
def test_its_topology_is_of_as_many_hosts(jobset):
    pod = pod_of(jobset)
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    hosts = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"]
    assert int(rows) * int(columns) == chips * hosts


def test_its_script_starts_the_run(jobset, tmp_path):
    """With stand-ins for git, pip and Python, which write down what they are called with."""
    command = [part.replace("/jaxneg\n", f"{tmp_path}\n") for part in pod_of(jobset)["containers"][0]["command"]]
    for name in ("git", "pip", "python"):
        (tmp_path / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >>{tmp_path}/calls\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": "3"}
    assert subprocess.run(command, env=environment).returncode == 0
    git, pip, python = (tmp_path / "calls").read_text().splitlines()
    assert git == f"git clone --quiet --depth 1 https://example.org/jaxneg.git {tmp_path}"
    assert pip.endswith(f"-e .[{jobset['of']}]")
    given = "--coordinator=jaxneg-train-0-0.jaxneg:8476 --num_processes=4 --process_id=3"
    assert python.endswith("--multihost" if jobset["of"] == "tpu" else f"--multihost {given}")


def test_every_placeholder_is_explained_and_found():
    body = FILE.read_text().partition("apiVersion")[2]
    placeholders = set(re.findall(r"REPLACE_[A-Z]+", body))
    assert placeholders == set(re.findall(r"^ +(REPLACE_[A-Z]+)  ", HEAD, re.MULTILINE))
    assert placeholders == set(re.findall(r"s#(REPLACE_[A-Z]+)#", SED[0]))
    with pytest.raises(jsonschema.ValidationError, match="REPLACE_"):
        VALIDATOR.validate(yaml.safe_load(FILE.read_text()))


BROKEN = {
    "a slip in a name": lambda jobset: jobset["spec"].update(failurPolicy=jobset["spec"].pop("failurePolicy")),
    "a field that is not there": lambda jobset: jobset["spec"]["failurePolicy"].update(retries=3),
    "text for a number": lambda jobset: jobset["spec"]["failurePolicy"].update(maxRestarts="20"),
    "a name that JobSet refuses": lambda jobset: jobset["spec"]["failurePolicy"]["rules"][0].update(name="bad-input"),
    "another version": lambda jobset: jobset.update(apiVersion="jobset.x-k8s.io/v1"),
    "no volume": lambda jobset: pod_of(jobset).pop("volumes"),
    "pods that restart alone": lambda jobset: pod_of(jobset).update(restartPolicy="OnFailure"),
    "an image left out": lambda jobset: pod_of(jobset)["containers"][0].pop("image"),
    "both kinds of devices": lambda jobset: pod_of(jobset)["containers"][0]["resources"]["limits"].update(
        {"google.com/tpu": 4, "nvidia.com/gpu": 8}
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_is_found(jobset, broken):
    del jobset["of"]
    BROKEN[broken](jobset)
    assert not VALIDATOR.is_valid(jobset)
