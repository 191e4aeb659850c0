"""The artifacts that are built from the checkout and uploaded to AWS: the routes' zip file, and the worker's image.

Both are named by a digest of their sources, so existing ones are not built again, and deploying an older checkout finds
the artifacts to roll back to.
"""

import base64
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import ClientError

from deploy.ecs.stacks import DeployError

CHECKOUT: Final = Path(__file__).parents[2]
PYTHON: Final = "3.13"
"""The functions' version of Python; the same as in the template."""

_ROUTES: Final = ("gatecast", "routes", "requirements/routes.txt")
_WORKER: Final = ("gatecast", "worker", "requirements/worker.txt", "Dockerfile", "deploy/image")
# The versions of glibc that a wheel for Lambda may require: Amazon Linux 2023 has 2.34.
_GLIBC: Final = ("2_34", "2_28", "2_17")
_SERVICES: Final = ("apigatewaymanagementapi", "dynamodb", "s3", "secretsmanager", "sqs")
"""The services that the routes call. The SDK's models of all other services are most of its size."""
_ZIP_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The timestamp of every entry in a zip file, so that equal contents give equal files."""


def digest(parts: Iterable[str], *more: str) -> str:
    """A digest of files and folders of the checkout, and of other inputs."""
    found = hashlib.sha256("\0".join(more).encode())
    for path in sorted(path for part in parts for path in _files(CHECKOUT / part)):
        found.update(f"\0{path.relative_to(CHECKOUT)}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def routes_key(architecture: str) -> str:
    """The key of the routes' zip file in the bucket."""
    return f"routes-{digest(_ROUTES, architecture, PYTHON)}-{architecture}.zip"


def upload_routes(s3: Any, bucket: str, architecture: str, *, say: Callable[[str], None]) -> str:
    """Build and upload the routes' zip file for Lambda, unless it exists. Returns its key."""
    key = routes_key(architecture)
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"404", "NoSuchKey", "NotFound"}:
            raise
    else:
        return key
    say("routes: installing dependencies …")
    with tempfile.TemporaryDirectory() as directory:
        packages, archive = Path(directory, "packages"), Path(directory, "routes.zip")
        install_packages(packages, architecture)
        for model in packages.glob("botocore/data/*/"):
            if model.name not in _SERVICES:
                shutil.rmtree(model)
        write_zip(archive, packages)
        say(f"routes: uploading {archive.stat().st_size / 1e6:.0f} MB")
        s3.upload_file(str(archive), bucket, key)
    return key


def install_packages(target: Path, architecture: str) -> None:
    """Install the routes' dependencies by hash, from wheels for Lambda, on any machine. Raises DeployError."""
    machine = {"arm64": "aarch64", "x86_64": "x86_64"}[architecture]
    platforms = [f"--platform=manylinux_{version}_{machine}" for version in _GLIBC]
    lock = CHECKOUT / "requirements" / "routes.txt"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-compile"]
    for_lambda = ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms]
    _run(
        [*pip, *for_lambda, f"--target={target}", "--require-hashes", f"--requirement={lock}"],
        "pip could not install the routes' dependencies",
    )


def write_zip(archive: Path, packages: Path) -> None:
    """Write `routes`, `gatecast` and the packages to a zip file. Equal contents give equal bytes."""
    found = [(path, path.relative_to(packages)) for path in _files(packages)]
    found += [(path, path.relative_to(CHECKOUT)) for part in ("gatecast", "routes") for path in _files(CHECKOUT / part)]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path, name in sorted(found, key=lambda pair: pair[1]):
            entry = zipfile.ZipInfo(str(name), _ZIP_EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, path.read_bytes())


def push_image(ecr: Any, repository: str, uri: str, architecture: str, *, say: Callable[[str], None]) -> str:
    """Build and push the worker's image, unless it exists. Returns its URI, by digest. Raises DeployError."""
    tag = f"worker-{digest(_WORKER, architecture)}-{architecture}"
    if found := _image_digest(ecr, repository, tag):
        return f"{uri}@{found}"
    if shutil.which("docker") is None:
        raise DeployError(
            "There is no docker on this machine to build the worker's image with. Install it, or run\n"
            f"  docker build --target worker --platform linux/{_docker(architecture)} -t {uri}:{tag} .\n"
            "elsewhere, push the image, and run this again."
        )
    say("worker: building the image …")
    options = ["--target", "worker", "--platform", f"linux/{_docker(architecture)}", "--tag", f"{uri}:{tag}"]
    _run(
        ["docker", "build", *options, str(CHECKOUT)],
        "docker could not build the worker's image. Another architecture than this machine's needs emulation\n"
        "(docker run --privileged --rm tonistiigi/binfmt --install all); or set Architecture to this machine's",
    )
    say("worker: pushing the image …")
    token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    user, _, password = base64.b64decode(token).decode().partition(":")
    _run(
        ["docker", "login", "--username", user, "--password-stdin", uri.partition("/")[0]],
        "docker could not log in to ECR",
        stdin=password,
    )
    _run(["docker", "push", "--quiet", f"{uri}:{tag}"], "docker could not push the worker's image")
    return f"{uri}@{_image_digest(ecr, repository, tag)}"


def _image_digest(ecr: Any, repository: str, tag: str) -> str | None:
    try:
        images = ecr.describe_images(repositoryName=repository, imageIds=[{"imageTag": tag}])["imageDetails"]
    except ecr.exceptions.ImageNotFoundException:
        return None
    found: str = images[0]["imageDigest"]
    return found


def _docker(architecture: str) -> str:
    return {"arm64": "arm64", "x86_64": "amd64"}[architecture]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [each for each in path.rglob("*") if each.is_file() and "__pycache__" not in each.parts]


def _run(command: list[str], failed: str, *, stdin: str | None = None) -> None:
    completed = subprocess.run(command, input=stdin, text=True, check=False, stdout=subprocess.DEVNULL)  # noqa: S603 - ours
    if completed.returncode:
        raise DeployError(failed)
