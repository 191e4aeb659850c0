"""The images, built and run: as docker-compose.yml runs them, and the functions' as Lambda does.

`make image-check` builds them and passes their location. Their file systems are read-only; their processes run as an
unprivileged user without capabilities. The ministack image replaces the service `aws`.
"""

import json
import os
import queue
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest

from tests.compose import images, services
from tests.containers import Container
from tests.routes_events import CONNECTION_ID, event

if "GATECAST_IMAGES" not in os.environ:
    pytest.skip("`make image-check` runs these", allow_module_level=True)

SERVICES = services("docker-compose.ministack.yml")


class Containers:
    """Starts containers of the images, and removes them at the end."""

    def __init__(self, directory: Path, cleanup: ExitStack) -> None:
        self._directory = directory
        self._cleanup = cleanup

    def start(self, name: str, command: list[str], environment: dict[str, str], **options: Any) -> Container:
        image = Path(os.environ["GATECAST_IMAGES"], name)
        environment = {**images()[name.removesuffix("-otel")].environment, **environment}
        container = Container.start(
            image, self._directory, command=command, environment=environment, hosts=list(SERVICES), **options
        )
        return self._cleanup.enter_context(container)

    def service(self, name: str, **environment: str) -> Container:
        """Start a service of docker-compose.yml; return when it is healthy, or at once if it has no health check."""
        service = SERVICES[name]
        definition = service.definition
        container = self.start(
            definition["build"]["target"],
            service.command,
            {**service.environment, **environment},
            tmpfs=definition.get("tmpfs", []),
            read_only=definition["read_only"],
        )
        deadline = time.monotonic() + 60
        while service.healthcheck and not container.succeeds(service.healthcheck):
            assert time.monotonic() < deadline, container.log.read_text()
            assert not container.has_ended, container.log.read_text()
        return container


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    with ExitStack() as cleanup:
        yield Containers(tmp_path, cleanup)


@pytest.fixture
def aws(containers: Containers) -> Container:
    ministack = containers.service("aws")
    init = containers.service("init")
    assert init.wait() == 0, init.log.read_text()
    return ministack


def test_the_stack_of_docker_compose_delivers_and_drains(containers: Containers, aws: Container) -> None:
    gateway = containers.service("gateway")
    worker = containers.service("worker")
    load = containers.service("load", CLIENTS="60", ROOMS="4", MESSAGES="30")
    assert load.wait(180) == 0, load.log.read_text() + worker.log.read_text()
    assert re.search(r"missing +│ +0 │", load.log.read_text())
    for container in (worker, gateway, aws):
        container.terminate()
        assert container.wait() == 0, container.log.read_text()
    assert "worker.stopped" in worker.log.read_text()


def test_an_invalid_configuration_ends_the_worker(containers: Containers) -> None:
    worker = containers.start("worker", images()["worker"].command, {})
    assert worker.wait() == 2
    assert worker.log.read_text().startswith("GATECAST_QUEUE_URL is missing")


@pytest.mark.parametrize("target", ["worker", "routes", "local", "ministack"])
def test_a_process_is_unprivileged_and_cannot_write(containers: Containers, target: str) -> None:
    script = """if True:
        import json, os
        def writable(path):
            try:
                open(os.path.join(path, "new"), "w").close()
            except OSError:
                return False
            return True
        status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
        print(json.dumps({
            "uid": os.getuid(), "gid": os.getgid(), "pid": os.getpid(),
            "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16), "gains": status["NoNewPrivs"],
            "writable": [path for path in ("/", "/app", "/tmp", "/opt/gatecast", "/var/tmp") if writable(path)],
        }))
    """
    container = containers.start(target, ["python3", "-c", script], {})
    assert container.wait() == 0, container.log.read_text()
    found = json.loads(container.log.read_text())
    assert (found["uid"], found["gid"], found["pid"]) == (10_001, 10_001, 1)
    assert (found["capabilities"], found["gains"].strip(), found["writable"]) == (0, "1", [])


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("worker", {"gatecast", "worker"}),
        ("routes", {"gatecast", "routes"}),
        ("local", {"gatecast", "routes", "local"}),
        ("ministack", set()),
    ],
)
def test_an_image_contains_only_its_code_and_packages_compiled(target: str, code: set[str]) -> None:
    root = Path(os.environ["GATECAST_IMAGES"], target, "rootfs")
    assert {path.name for path in (root / "app").iterdir()} == code
    page = {".css", ".html", ".js"} if "local" in code else set()
    found = {path.suffix for path in (root / "app").rglob("*") if path.is_file()}
    assert found == {".py", ".pyc", ".typed", *page} if code else not found
    sources = [path for folder in ("app", "opt/gatecast/lib") for path in (root / folder).rglob("*.py")]
    assert sources
    assert [path for path in sources if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))] == []
    assert not list((root / "opt/gatecast").rglob("pip"))
    assert not (root / "etc/pip.conf").exists()
    owners = {(path.lstat().st_uid, path.lstat().st_mode & 0o022) for path in sources}
    assert owners == {(0, 0)}


@pytest.mark.parametrize("target", ["worker", "routes", "local", "ministack"])
def test_an_image_has_the_configuration_of_the_dockerfile(target: str) -> None:
    built = json.loads(Path(os.environ["GATECAST_IMAGES"], target, "image.json").read_text())["Docker"]["config"]
    declared = images()[target]
    assert dict(variable.split("=", 1) for variable in built["Env"]).items() >= declared.environment.items()
    assert (built["User"], built["Cmd"], built["Entrypoint"] or []) == (
        declared.user,
        declared.command,
        declared.entrypoint,
    )
    assert built.get("Healthcheck", {"Test": ["CMD"]})["Test"] == ["CMD", *declared.healthcheck]
    assert built["Labels"]["org.opencontainers.image.title"] == "Gatecast"


def test_the_worker_image_supports_all_credential_sources_of_the_sdk(containers: Containers) -> None:
    script = """if True:
        import botocore.session
        for service in ("dynamodb", "s3", "sqs", "sso", "sso-oidc", "sts"):
            botocore.session.get_session().create_client(service, region_name="eu-west-1")
    """
    container = containers.start("worker", ["python3", "-c", script], {})
    assert container.wait() == 0, container.log.read_text()


@pytest.mark.parametrize(("image", "code"), [("worker", 1), ("worker-otel", 0)])
def test_only_the_otel_image_contains_the_trace_exporter(containers: Containers, image: str, code: int) -> None:
    container = containers.start(image, ["python3", "-c", "import opentelemetry.exporter.otlp.proto.http"], {})
    assert container.wait() == code, container.log.read_text()


@contextmanager
def lambda_api(*events: dict[str, Any]) -> Iterator[tuple[str, "queue.Queue[Any]"]]:
    """A Lambda runtime API that serves these events. Yields its address, and a queue of (path, response)."""
    invocations: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
    for number, each in enumerate(events):
        invocations.put((f"request-{number}", each))
    responses: queue.Queue[Any] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            request_id, body = invocations.get()
            headers = {
                "Content-Type": "application/json",
                "Lambda-Runtime-Aws-Request-Id": request_id,
                "Lambda-Runtime-Deadline-Ms": str(time.time_ns() // 1_000_000 + 60_000),
                "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:000000000000:function:connect",
                "Lambda-Runtime-Trace-Id": "Root=1-67891233-abcdef012345678912345678",
            }
            self._send(200, headers, json.dumps(body).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            responses.put((self.path.rpartition("/runtime/")[2], json.loads(body)))
            self._send(202, {}, b"")

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    serving = Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"127.0.0.1:{server.server_port}", responses
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.mark.usefixtures("aws")
def test_the_functions_respond_to_lambda(containers: Containers) -> None:
    environment = SERVICES["gateway"].environment
    function = images()["routes"]
    with lambda_api(event("$connect"), event("$connect", authorizer={"user": "no name"})) as (address, responses):
        container = containers.start(
            "routes",
            [*function.entrypoint, "routes.handlers.connect"],
            {
                **environment,
                "AWS_LAMBDA_RUNTIME_API": address,
                "AWS_LAMBDA_FUNCTION_NAME": "connect",
                "AWS_LAMBDA_FUNCTION_VERSION": "1",
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
                "AWS_LAMBDA_LOG_GROUP_NAME": "connect",
                "AWS_LAMBDA_LOG_STREAM_NAME": "connect",
            },
        )
        try:
            received = [responses.get(timeout=60) for _ in range(2)]
        except queue.Empty:
            pytest.fail(container.log.read_text())
    assert [(path, response.get("statusCode")) for path, response in received] == [
        ("invocation/request-0/response", 200),
        ("invocation/request-1/response", 400),
    ]
    table = boto3.session.Session(region_name="us-east-1").resource(
        "dynamodb", endpoint_url="http://127.0.0.1:4566", aws_access_key_id="local", aws_secret_access_key="local"
    )
    found = table.Table(environment["GATECAST_TABLE"]).scan()["Items"]
    assert f"connection#{CONNECTION_ID}" in {item["pk"] for item in found}
