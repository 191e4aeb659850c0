"""Containers without a container engine: crun runs an image's file system and configuration.

A container has what a service of docker-compose.yml asks for: a user, a read-only root, no capabilities, tmpfs; its
process is the first one of a process namespace. It shares the network with the test, which should therefore run in a
network namespace of its own; every name of `hosts` is the loopback address. Limits of memory and CPU are left out.
"""

import json
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

_MOUNTS = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev"]},  # noqa: S108
)


class Container:
    """A running container. `log` has its output. A context manager that removes it."""

    def __init__(self, name: str, state: Path, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self.log = log
        self._name = name
        self._state = state
        self._popen = popen

    @classmethod
    def start(
        cls,
        image: Path,
        directory: Path,
        *,
        command: Sequence[str],
        environment: Mapping[str, str],
        hosts: Sequence[str] = (),
        tmpfs: Sequence[str] = (),
        read_only: bool = True,
    ) -> Self:
        """Starts a container and returns at once. `image` has `rootfs` and `image.json` (from `buildah inspect`)."""
        name = f"gatecast-{uuid.uuid4().hex[:12]}"
        state, bundle = directory / "crun", directory / name
        bundle.mkdir()
        (bundle / "hosts").write_text(f"127.0.0.1 localhost {' '.join(hosts)}\n")
        configuration = json.loads((image / "image.json").read_text())["Docker"]["config"]
        uid, _, gid = configuration["User"].partition(":")
        specification = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": int(uid), "gid": int(gid)},
                "args": list(command),
                "env": [f"{name}={value}" for name, value in environment.items()],
                "cwd": configuration["WorkingDir"],
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "root": {"path": str((image / "rootfs").resolve()), "readonly": read_only},
            "hostname": name,
            "mounts": [*_MOUNTS, _bind_mount(bundle / "hosts", "/etc/hosts"), *(_tmpfs(each) for each in tmpfs)],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
                "readonlyPaths": ["/proc/sys"],
                "maskedPaths": ["/proc/kcore", "/proc/keys"],
            },
        }
        (bundle / "config.json").write_text(json.dumps(specification))
        log = bundle / "log"
        with log.open("ab") as output:
            popen = subprocess.Popen(
                _crun(state, "run", "--bundle", str(bundle), name),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return cls(name, state, popen, log)

    def succeeds(self, command: Sequence[str]) -> bool:
        """Runs a command in the container. Returns whether its exit code was 0."""
        return self._call("exec", self._name, *command).returncode == 0

    def terminate(self) -> None:
        """Sends SIGTERM to the container's first process."""
        self._call("kill", self._name, "TERM").check_returncode()

    def wait(self, seconds: float = 60) -> int:
        """Waits for the container to end. Returns its exit code. Raises TimeoutExpired."""
        return self._popen.wait(seconds)

    @property
    def has_ended(self) -> bool:
        return self._popen.poll() is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call("delete", "--force", self._name)
        self._popen.wait(60)

    def _call(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            _crun(self._state, *arguments), check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )


def _crun(state: Path, *arguments: str) -> list[str]:
    return ["crun", "--root", str(state), "--cgroup-manager", "disabled", *arguments]


def _bind_mount(source: Path, destination: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["bind", "ro"]}


def _tmpfs(entry: str) -> dict[str, Any]:
    """An entry of a service's `tmpfs`, such as `/tmp:size=64m`."""
    destination, _, options = entry.partition(":")
    return {
        "destination": destination,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "noexec", "nodev", *filter(None, options.split(","))],
    }
