"""docker-compose.yml, its override and the Dockerfile: consistent with each other and the rest, and locked down."""

import re

import pytest
import yaml

from local.gateway_process import STAGE
from tests.compose import CHECKOUT, Service, images, services
from worker.settings import Settings

WITH_LOCALSTACK = services()
WITH_MINISTACK = services("docker-compose.ministack.yml")
ALL = [
    *(pytest.param(service, id=name) for name, service in WITH_LOCALSTACK.items()),
    pytest.param(WITH_MINISTACK["aws"], id="aws by ministack"),
]
OBSERVABILITY = CHECKOUT / "deploy/observability"
OURS = ("worker", "routes", "local", "ministack")


@pytest.mark.parametrize("service", ALL)
def test_a_service_is_confined(service: Service) -> None:
    definition = service.definition
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]
    assert definition["mem_limit"]
    assert definition["cpus"]
    assert definition["pids_limit"]
    assert not definition.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "container_name"}
    localstack = "localstack" in definition.get("image", "")
    assert definition.get("read_only", False) is not localstack


@pytest.mark.parametrize("service", ALL)
def test_ports_are_published_on_loopback_only(service: Service) -> None:
    for port in service.definition.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@pytest.mark.parametrize("service", ALL)
def test_an_image_is_built_here_or_pinned(service: Service) -> None:
    image = service.definition.get("image")
    assert image is None or re.search(r":v?\d+\.\d+\.\d+$", image)
    assert image or "build" in service.definition


@pytest.mark.parametrize("service", ALL)
def test_mounts_exist_and_are_read_only(service: Service) -> None:
    for volume in service.definition.get("volumes", []):
        source, _, options = volume.split(":")
        assert (CHECKOUT / source).is_dir()
        assert options == "ro"


@pytest.mark.parametrize("service", ALL)
def test_a_dependency_that_must_be_healthy_has_a_health_check(service: Service) -> None:
    for name, waits in service.definition.get("depends_on", {}).items():
        if waits["condition"] == "service_healthy":
            assert WITH_LOCALSTACK[name].healthcheck
            assert WITH_MINISTACK[name].healthcheck
        else:
            assert (name, waits["condition"]) == ("init", "service_completed_successfully")


def test_the_worker_is_configured_and_can_be_scaled() -> None:
    worker = WITH_LOCALSTACK["worker"]
    settings = Settings.from_environ(worker.environment)
    assert settings.http_host == "0.0.0.0"  # noqa: S104 - in a container
    assert "ports" not in worker.definition
    drain_seconds = int(worker.definition["stop_grace_period"].removesuffix("s"))
    assert settings.drain_seconds < drain_seconds


def test_all_services_use_the_same_gateway() -> None:
    gateway = WITH_LOCALSTACK["gateway"]
    port = gateway.command[gateway.command.index("--port") + 1]
    endpoint = f"http://gateway:{port}/{STAGE}"
    assert WITH_LOCALSTACK["worker"].environment["GATECAST_CONNECTIONS_ENDPOINT"] == endpoint
    assert WITH_LOCALSTACK["load"].command[-1] == endpoint
    assert gateway.definition["ports"] == [f"127.0.0.1:4510:{port}"]
    assert any(f":{port}/" in argument for argument in gateway.healthcheck)


def test_all_services_use_the_same_table_and_queues() -> None:
    shared = {
        name: {key: value for key, value in WITH_LOCALSTACK[name].environment.items() if key != "PATH"}
        for name in ("init", "gateway", "worker", "load")
    }
    for environment in shared.values():
        assert shared["init"].items() <= environment.items()
    queue_url = shared["init"]["GATECAST_QUEUE_URL"]
    assert shared["init"]["GATECAST_DEAD_LETTER_QUEUE_URL"] == f"{queue_url}-dead-letter"
    endpoint = WITH_LOCALSTACK["init"].command[-1]
    assert queue_url.startswith(f"{endpoint}/")
    assert shared["init"]["AWS_ENDPOINT_URL_SQS"] == shared["init"]["AWS_ENDPOINT_URL_DYNAMODB"] == endpoint
    assert WITH_MINISTACK["aws"].environment["MINISTACK_HOST"] in endpoint


def test_prometheus_scrapes_the_worker() -> None:
    configuration = yaml.safe_load((OBSERVABILITY / "prometheus/prometheus.yml").read_text())
    (job,) = configuration["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    port = Settings.from_environ(WITH_LOCALSTACK["worker"].environment).http_port
    assert (found["names"], found["type"], found["port"]) == (["worker"], "A", port)


def test_prometheus_alertmanager_and_grafana_find_each_other_and_the_dashboards() -> None:
    prometheus = yaml.safe_load((OBSERVABILITY / "prometheus/prometheus.yml").read_text())
    (alertmanagers,) = prometheus["alerting"]["alertmanagers"]
    assert alertmanagers["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    assert "alertmanager" in WITH_LOCALSTACK
    provisioning = OBSERVABILITY / "grafana/provisioning"
    (datasource,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert datasource["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/gatecast.yml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in WITH_LOCALSTACK["grafana"].definition["volumes"]]
    assert provider["options"]["path"] in mounted


@pytest.mark.parametrize("target", OURS)
def test_our_images_run_as_an_unprivileged_user_and_need_no_shell(target: str) -> None:
    image = images()[target]
    assert image.user == "10001:10001"
    assert image.command
    assert "sh" not in (image.entrypoint + image.command + image.healthcheck)
    assert image.environment["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.parametrize(("built", "tested"), [("lambda", "routes"), ("worker", "local"), ("routes", "local")])
def test_images_have_the_package_versions_that_the_tests_use(built: str, tested: str) -> None:
    but = {"awslambdaric", "simplejson", "snapshot-restore-py"}
    if built == "routes":  # AWS's SDK is the current one there, which `make test-aiobotocore` tests
        but |= {"boto3", "botocore", "s3transfer"}
    assert locked(built, but=but).items() <= locked(tested).items()


def test_the_routes_have_a_newer_sdk_than_aioboto3_allows() -> None:
    def version(name: str) -> tuple[int, ...]:
        return tuple(map(int, locked(name)["botocore"].split(".")))

    assert version("routes") > version("worker")
    assert version("aiobotocore") > version("worker")
    assert not {"aioboto3"} & locked("aiobotocore").keys()
    assert "aioboto3" in locked("worker")


def test_the_override_tag_is_the_ministack_version() -> None:
    image = WITH_MINISTACK["aws"].definition["image"]
    assert image == f"gatecast/ministack:{locked('ministack')['ministack']}"


def test_the_tests_can_run_on_the_localstack_of_docker_compose() -> None:
    image = services()["aws"].definition["image"]
    assert image == f"localstack/localstack:{locked('localstack')['localstack-core']}"


def locked(name: str, but: frozenset[str] | set[str] = frozenset()) -> dict[str, str]:
    lines = (CHECKOUT / "requirements" / f"{name}.txt").read_text().splitlines()
    found = (re.match(r"([a-z0-9-]+)==(\S+)", line) for line in lines)
    return {each[1]: each[2] for each in found if each and each[1] not in but}
