"""The files in `cluster/`, against the schemas of those who read them. No Ray is started."""

import copy
import importlib
import json
import logging
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from packaging.specifiers import SpecifierSet
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as rays_commands
from ray.serve.schema import ServeDeploySchema

from orchestrator.job.job import Job
from tests.schemas.pack import unpack

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CLOUDS = [CLUSTER / name for name in ("aws.yaml", "gcp.yaml")]
RAY_UP = [path for path in (CLUSTER / "on_prem.yaml", *CLOUDS) if path.exists()]
KUBERAY = sorted((CLUSTER / "kuberay").glob("*/ray*.yaml"))
QUEUES = CLUSTER / "kuberay/kueue/queues.yaml"
HOME = "/home/ray/orchestrator/"  # of the project in the image

Object = dict[str, Any]
Schemas = dict[str, jsonschema.Draft7Validator]


def documents(path: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def document(path: Path) -> Object:
    (only,) = documents(path)
    return only


# Files of `ray up`.


@pytest.fixture(params=RAY_UP, ids=lambda path: path.name)
def ray_up(request: pytest.FixtureRequest) -> Object:
    return document(request.param)


@pytest.fixture(params=CLOUDS, ids=lambda path: path.name)
def cloud(request: pytest.FixtureRequest) -> Object:
    return document(request.param)


def test_ray_up_files_satisfy_rays_schema_before_and_after_its_defaults(ray_up: Object) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(ray_up, schema)
    validate_config(prepare_config(copy.deepcopy(ray_up)))


def test_every_ray_that_starts_demands_the_token(ray_up: Object) -> None:
    commands = ray_up["head_start_ray_commands"] + ray_up["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        before, _, _ = command.partition("ray start")
        assert re.search(r"export [^;&]*\bRAY_AUTH_MODE=token\b", before), command
    assert ray_up["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in ray_up["setup_commands"])


def test_the_dashboard_listens_on_the_head_alone(ray_up: Object) -> None:
    heads = [command for command in ray_up["head_start_ray_commands"] if "--head" in command]
    assert len(heads) == 1 and "--dashboard-host=127.0.0.1" in heads[0]


def test_mounted_files_are_enough_to_install_the_project(ray_up: Object, tmp_path: Path) -> None:
    for remote, local in ray_up["file_mounts"].items():
        if remote.startswith("~/orchestrator"):
            assert (ROOT / local).exists(), local
            (tmp_path / remote.removeprefix("~/orchestrator/")).symlink_to(ROOT / local)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert (tmp_path / project["readme"]).exists()
    assert (tmp_path / "orchestrator/__init__.py").exists()
    (install,) = (command for command in ray_up["setup_commands"] if "pip install" in command)
    (constraints,) = re.findall(r"--constraint (\S+)", install)
    assert (tmp_path / constraints).exists()


def test_nothing_is_billed_that_was_not_asked_for(cloud: Object) -> None:
    assert cloud["provider"]["cache_stopped_nodes"] is False  # stopped machines keep their disks
    types = cloud["available_node_types"]
    assert set(types) == {"head", "gpu"} and cloud["head_node_type"] == "head"
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["max_workers"] <= cloud["max_workers"]


def test_the_head_is_on_demand_and_the_workers_on_spot() -> None:
    aws, gcp = (document(path)["available_node_types"] for path in CLOUDS)
    assert "InstanceMarketOptions" not in aws["head"]["node_config"]
    assert aws["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "scheduling" not in gcp["head"]["node_config"]
    assert gcp["gpu"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert gcp["gpu"]["resources"]["GPU"] == 1


def test_sizes_of_disks_are_given_and_images_of_machines_are_looked_up() -> None:
    aws, gcp = (document(path)["available_node_types"] for path in CLOUDS)
    for kind in ("head", "gpu"):
        node = aws[kind]["node_config"]
        (disk,) = node["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 100 and disk["Ebs"]["DeleteOnTermination"]
        assert node["ImageId"].startswith("resolve:ssm:/aws/service/")
        (disk,) = gcp[kind]["node_config"]["disks"]
        assert disk["initializeParams"]["diskSizeGb"] >= 100 and disk["autoDelete"]
        assert "/images/family/" in disk["initializeParams"]["sourceImage"]
    for path in CLUSTER.rglob("*.yaml"):
        assert not re.search(r"\bami-[0-9a-f]{8,}", path.read_text()), path


def test_roles_of_the_machines_are_those_of_the_account() -> None:
    text = (CLUSTER / "aws_account.yaml").read_text()
    made = set(re.findall(r"InstanceProfileName: (\S+)", text))
    types = document(CLUSTER / "aws.yaml")["available_node_types"].values()
    assert {each["node_config"]["IamInstanceProfile"]["Name"] for each in types} == made


# Images of Ray, wherever they are named.


def rays_images() -> Iterator[tuple[Path, str]]:
    for path in sorted(CLUSTER.rglob("*")):
        if path.is_file():
            for tag in re.findall(r"rayproject/ray:([\w.-]+)", path.read_text()):
                yield path, tag


def test_images_of_ray_have_the_tested_version_and_a_python_that_the_project_allows() -> None:
    found = list(rays_images())
    assert {path.name for path, _ in found} >= {
        "aws.yaml",
        "gcp.yaml",
        "skypilot.yaml",
        "Dockerfile",
    }
    constraints = (ROOT / "constraints.txt").read_text()
    (version,) = re.findall(r"^ray==(\S+)$", constraints, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for path, tag in found:
        match = re.fullmatch(r"([\d.]+)-py(\d)(\d+)-(cpu|gpu)", tag)
        assert match is not None, (path, tag)
        assert match[1] == version, (path, tag)
        assert f"{match[2]}.{match[3]}" in SpecifierSet(project["requires-python"]), (path, tag)


# The image.


def instructions() -> list[tuple[str, str]]:
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_what_the_image_copies_exists_and_is_in_the_context() -> None:
    lines = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = set()
    for name, rest in instructions():
        if name == "COPY":
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            copied |= set(sources)
    for source in copied:
        assert (ROOT / source).exists(), source
    assert "*" in lines and copied == allowed


def test_the_image_runs_as_a_user_and_installs_the_tested_versions() -> None:
    users = [rest for name, rest in instructions() if name == "USER"]
    assert users and users[-1] not in ("root", "0")
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert "--constraint constraints.txt" in installs[0] and "--no-deps" in installs[-1]
    assert ("WORKDIR", HOME.rstrip("/")) in instructions()


# Kubernetes.


def strict(schema: Any) -> Any:
    """The schema, refusing the keys that an API server would silently drop.

    `x-kubernetes-int-or-string` has no type, and `x-kubernetes-preserve-unknown-fields` keeps all.
    """
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    closed = not schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "properties" in schema and closed:
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made = {"type": ["integer", "string"]}
    return made


METADATA = {  # an API server has its own schema of it
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "labels": {"type": "object"}},
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def schemas() -> Schemas:
    made = {}
    for kind, schema in (unpack("kuberay.json.gz") | unpack("kueue.json.gz")).items():
        complete = strict(schema)
        complete["properties"]["metadata"] = METADATA
        jsonschema.Draft7Validator.check_schema(complete)
        made[kind] = jsonschema.Draft7Validator(complete)
    return made


def check(each: Object, schemas: Schemas) -> None:
    for error in schemas[f"{each['apiVersion']} {each['kind']}"].iter_errors(each):
        raise error


@pytest.mark.parametrize("path", [*KUBERAY, QUEUES], ids=lambda path: path.stem)
def test_resources_satisfy_the_schemas_of_their_kinds(path: Path, schemas: Schemas) -> None:
    for each in documents(path):
        check(each, schemas)


def places(node: Any) -> Iterator[Object]:
    """Every mapping in the document."""
    if isinstance(node, dict):
        yield node
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for value in list(values):
        yield from places(value)


@pytest.mark.parametrize("path", [*KUBERAY, QUEUES], ids=lambda path: path.stem)
def test_an_unknown_key_is_refused_wherever_it_is(path: Path, schemas: Schemas) -> None:
    # These hold names of their user's choice.
    free = {"labels", "matchLabels", "requests", "limits", "rayStartParams", "namespaceSelector"}
    for each in documents(path):
        chosen = [holder[key] for holder in places(each) for key in free & set(holder)]
        for place in places(each):
            if any(place is other for other in chosen):
                continue
            place["unheardOf"] = 1
            with pytest.raises(jsonschema.ValidationError, match="unheardOf"):
                check(each, schemas)
            del place["unheardOf"]


def cluster_of(resource: Object) -> Object:
    spec: Object = resource["spec"]
    key = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    name = key[resource["kind"]]
    return spec if name is None else spec[name]


def groups(cluster: Object) -> list[Object]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.fixture(params=KUBERAY, ids=lambda path: path.stem)
def resource(request: pytest.FixtureRequest) -> Object:
    return document(request.param)


def test_every_kind_is_there() -> None:
    assert {document(path)["kind"] for path in KUBERAY} == {"RayCluster", "RayJob", "RayService"}


def test_clusters_demand_the_token_and_have_no_privileges(resource: Object) -> None:
    cluster = cluster_of(resource)
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token", "secretName": "orchestrator"}
    for group in groups(cluster):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"] == "orchestrator"
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_a_group_whose_size_nobody_changes_has_both_limits(resource: Object) -> None:
    """KubeRay refuses others, and its schema does not say so."""
    for group in cluster_of(resource)["workerGroupSpecs"]:
        assert group["minReplicas"] <= group.get("replicas", group["minReplicas"])
        assert group.get("replicas", 0) <= group["maxReplicas"]


@pytest.mark.parametrize("kind", ["RayCluster", "RayService"])
def test_what_stays_up_survives_its_head(kind: str) -> None:
    (found,) = (each for each in map(document, KUBERAY) if each["kind"] == kind)
    options = cluster_of(found)["gcsFaultToleranceOptions"]
    service, redis = documents(CLUSTER / "kuberay/redis/redis.yaml")
    (port,) = service["spec"]["ports"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{port['port']}"
    (container,) = redis["spec"]["template"]["spec"]["containers"]
    (password,) = container["env"]
    assert password["valueFrom"] == options["redisPassword"]["valueFrom"]


def test_a_job_ends_its_cluster_retries_little_and_fits_it() -> None:
    job = document(CLUSTER / "kuberay/rayjob/rayjob.yaml")["spec"]
    assert job["shutdownAfterJobFinishes"] is True and 0 < job["backoffLimit"] <= 2
    words = job["entrypoint"].split()
    assert words[:4] == ["python", "-m", "orchestrator", "run"]
    assert (ROOT / words[4].removeprefix(HOME)).exists()
    assert "#" not in job["entrypoint"]
    overrides = dict(word.split("=") for word in words[5:] if "=" in word)
    assert overrides["storage"].startswith("s3://")
    (workers,) = job["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["replicas"] == int(overrides["cluster.workers"])
    (container,) = workers["template"]["spec"]["containers"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == int(overrides["cluster.gpus_per_worker"])


def test_the_service_names_an_application_that_exists_and_takes_its_arguments() -> None:
    service = document(CLUSTER / "kuberay/rayservice/rayservice.yaml")["spec"]
    (application,) = ServeDeploySchema.model_validate(
        yaml.safe_load(service["serveConfigV2"])
    ).applications
    module, _, name = application.import_path.partition(":")
    build = getattr(importlib.import_module(module), name)
    arguments = build.__annotations__["args"].model_validate(application.args)
    assert (ROOT / arguments.job.removeprefix(HOME)).exists()
    # What trained it and what serves it name one run.
    entrypoint = document(CLUSTER / "kuberay/rayjob/rayjob.yaml")["spec"]["entrypoint"].split()
    assert arguments.job in entrypoint
    assert [each for each in arguments.overrides if each.startswith("storage=")] == [
        each for each in entrypoint if each.startswith("storage=")
    ]


def test_the_service_has_its_keys_where_its_job_reads_them() -> None:
    service = document(CLUSTER / "kuberay/rayservice/rayservice.yaml")["spec"]
    overrides = yaml.safe_load(service["serveConfigV2"])["applications"][0]["args"]["overrides"]
    (keys,) = [Path(each.partition("=")[2]) for each in overrides if each.startswith("serve.keys=")]
    cluster = service["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (mount,) = pod["containers"][0]["volumeMounts"]
        (volume,) = pod["volumes"]
        assert Path(mount["mountPath"]) == keys.parent and mount["name"] == volume["name"]
        assert [item["path"] for item in volume["secret"]["items"]] == [keys.name]
    page = (ROOT / "docs/clusters.md").read_text()
    assert f"--from-file={volume['secret']['items'][0]['key']}=" in page


# The queue.


def in_a_queue() -> Object:
    """The job of the overlay, whose patches add what is named by a path."""
    overlay = document(CLUSTER / "kuberay/kueue/kustomization.yaml")
    job = document(CLUSTER / "kuberay/rayjob/rayjob.yaml")
    for patch in overlay["patches"]:
        for change in yaml.safe_load(patch["patch"]):
            *path, last = change["path"].strip("/").split("/")
            place = job
            for key in path:
                place = place[key]
            assert change["op"] == "add" and last not in place
            place[last] = change["value"]
    return job


def quantity(given: str | int) -> float:
    units = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}
    match = re.fullmatch(r"(\d+)(m|Mi|Gi|)", str(given))
    assert match is not None, given
    return int(match[1]) * units[match[2]]


def test_the_queued_job_is_what_kueue_accepts(schemas: Schemas) -> None:
    job = in_a_queue()
    check(job, schemas)
    _, _, queue = documents(QUEUES)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    # Its webhook refuses these.
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert not cluster_of(job).get("enableInTreeAutoscaling", False)


def test_the_queued_job_fits_the_quota() -> None:
    flavor, queue, local = documents(QUEUES)
    (group,) = queue["spec"]["resourceGroups"]
    (quota,) = group["flavors"]
    assert quota["name"] == flavor["metadata"]["name"]
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert [each["name"] for each in quota["resources"]] == group["coveredResources"]
    # The pod that submits the job counts, too.
    needed = {"cpu": 0.5, "memory": 200 * 2.0**20, "nvidia.com/gpu": 0.0}
    for each in groups(cluster_of(in_a_queue())):
        (container,) = each["template"]["spec"]["containers"]
        for name, value in container["resources"]["requests"].items():
            needed[name] += each.get("replicas", 1) * quantity(value)
    for each in quota["resources"]:
        assert needed[each["name"]] <= quantity(each["nominalQuota"]), each


def test_kustomize_builds_every_folder(schemas: Schemas) -> None:
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("needs kubectl")
    for folder in ("raycluster", "rayjob", "rayservice", "kueue"):
        command = [kubectl, "kustomize", str(CLUSTER / "kuberay" / folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        built = list(yaml.safe_load_all(done.stdout))
        assert len(built) >= 1
        for each in built:
            if "x-k8s.io" in each["apiVersion"] or "ray.io" in each["apiVersion"]:
                each["metadata"].pop("namespace", None)
                check(each, schemas)


# SkyPilot.


def test_the_skypilot_file_satisfies_its_schema() -> None:
    task = document(CLUSTER / "skypilot.yaml")
    schema = unpack("skypilot.json.gz")["task"]
    jsonschema.validate(task, schema)
    with pytest.raises(jsonschema.ValidationError, match="use_spots"):
        jsonschema.validate({**task, "resources": {"use_spots": True}}, schema)
    assert task["resources"]["use_spot"] is True and task["resources"]["disk_size"] >= 100
    assert "RAY_AUTH_TOKEN" in task["secrets"] and "RAY_AUTH_TOKEN" not in task["envs"]
    assert f"cluster.workers={task['num_nodes']} " in task["envs"]["OVERRIDES"]
    assert (ROOT / task["envs"]["JOB"]).exists()


@pytest.mark.parametrize("key", ["run", "setup"])
def test_scripts_of_the_skypilot_file_are_bash(key: str) -> None:
    script = document(CLUSTER / "skypilot.yaml")[key]
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert script.index("RAY_AUTH_MODE=token") < script.index("ray start") if key == "run" else True


def test_the_skypilot_file_without_a_storage_says_so_and_starts_nothing() -> None:
    script = document(CLUSTER / "skypilot.yaml")["run"]
    done = subprocess.run(
        ["bash", "-c", script], env={"STORAGE": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "STORAGE is empty" in done.stdout


# What a submitted job ships.


def test_a_submitted_job_ships_the_project_and_little_else(tmp_path: Path) -> None:
    copied = tmp_path / "project"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (copied / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copied / name)
    heavy = [".git/pack", ".venv/lib/x.so", "runs/a/manifest.json", ".mypy_cache/x", "venv/x"]
    heavy += ["orchestrator/__pycache__/x.pyc", ".venv312/x", "benchmarks/.pytest_cache/x"]
    heavy += ["orchestrator/serve/__pycache__/x.pyc"]
    for name in heavy:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes(b"x")
    (copied / "orchestrator/runs").mkdir()  # the name alone does not leave a folder out
    (copied / "orchestrator/runs/kept.py").write_text("")
    package = tmp_path / "package.zip"
    quiet = logging.getLogger("tests.quiet")
    create_package(str(copied), package, include_gitignore=True, logger=quiet)
    shipped = set(zipfile.ZipFile(package).namelist())
    assert {
        "orchestrator/__main__.py",
        "jobs/language_modelling.yaml",
        "pyproject.toml",
        "orchestrator/runs/kept.py",
        "orchestrator/dashboard/static/index.html",
    } <= shipped
    assert not shipped & set(heavy)
    assert not [name for name in shipped if name.startswith(("docs/", "benchmarks/", ".ci/"))]
    assert package.stat().st_size < 5 * 2**20


# The page.


def test_the_page_names_files_commands_and_keys_that_exist() -> None:
    text = (ROOT / "docs/clusters.md").read_text()
    for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists() or target.endswith("on_prem.yaml"), target
    headings = {
        re.sub(r"[^\w -]", "", line.strip("# ")).lower().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
    for section, key in re.findall(r"`(cluster|serve|data)\.(\w+)`", text):
        model = Job.model_fields[section].annotation
        assert key in model.model_fields, f"{section}.{key}"  # type: ignore[union-attr]
    for folder in re.findall(r"kubectl (?:apply|delete) -k (\S+?)`", text):
        assert (ROOT / folder / "kustomization.yaml").exists(), folder


def test_commands_on_the_page_are_ones_of_ray() -> None:
    text = (ROOT / "docs/clusters.md").read_text()
    named = {
        *re.findall(r"\.venv/bin/ray ([a-z-]+)", text),
        *re.findall(r"`ray ([a-z-]+)[ `]", text),
    }
    assert {"up", "down", "exec", "dashboard", "attach"} <= named
    assert named <= set(rays_commands.commands) | {"job"}
