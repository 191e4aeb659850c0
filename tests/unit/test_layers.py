"""Imports point one way: between the packages of the checkout, and between the layers of the worker."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("gatecast", "routes", "worker", "local", "deploy")
MAY_IMPORT = {
    "gatecast": {"gatecast"},
    "routes": {"routes", "gatecast"},
    "worker": {"worker", "gatecast"},
    "deploy": {"deploy", "local", "gatecast"},  # the last two only where there is no account: the tests below
    "local": {"local", "gatecast", "routes"},  # nothing of the worker: it must not share the worker's mistakes
}
LAYERS = (
    ("__main__", "service"),
    ("worker",),
    ("pipeline",),
    ("aws",),
    ("delivery",),
    ("resilience", "ports"),
    ("transport",),
    ("observe",),
    ("decisions",),
    ("settings", "batcher", "open_files", "members_setting", "members_check"),
)
"""Of the worker, from top to bottom: a module imports from its own layer and from those below."""
ALSO_PURE = ("aws/progress_item", "pipeline/capacity", "pipeline/admission")
"""Beside all of `decisions`."""
INPUT_OUTPUT = {
    "asyncio", "socket", "ssl", "select", "selectors", "time", "datetime", "random", "secrets", "os", "sys", "io",
    "aiohttp", "aioboto3", "aiobotocore", "botocore", "boto3", "structlog", "uvloop", "rich",
}  # fmt: skip
SDK = {"aioboto3", "aiobotocore", "boto3", "botocore"}
LIVE_VIEW_COMPUTING = ("samples", "figures", "view", "as_json")
LIVE_VIEW_MAY_IMPORT = (
    "gatecast.cli.top", "gatecast.cli.failures", "gatecast.cli.options", "gatecast.cli.output", "gatecast.printable",
)  # fmt: skip
"""And no more of ours: what all commands share, and how text is made safe."""
CLIENT_PURE = ("errors", "events", "options", "presence", "sequence", "wire")
CLIENT_MAY_IMPORT = ("gatecast.client", "gatecast.frames")
"""And no more of ours: it shares only the form of a message with the server."""


def imported_by(source: str) -> Iterator[str]:
    """Full names of modules, and of what is imported from them, which may be modules as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(package: str) -> dict[str, str]:
    """The source of each module of a package, by its name without the package's."""
    root = CHECKOUT / package
    return {
        ".".join(part for part in path.relative_to(root).with_suffix("").parts if part != "__init__"): path.read_text()
        for path in sorted(root.rglob("*.py"))
    }


def arrows(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Which of the worker's modules each of them imports, directly."""
    found: dict[str, set[str]] = {}
    for name, source in modules.items():
        imported = {each.removeprefix("worker.") for each in imported_by(source) if each.startswith("worker.")}
        found[name] = {each for each in imported if each in modules and each != name}
    return found


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for module in graph[waiting.pop()] - found:
            found.add(module)
            waiting.append(module)
    return found


def layer(module: str) -> int:
    top = module.partition(".")[0]
    [number] = [number for number, names in enumerate(LAYERS) if top in names]
    return number


def violations(modules: Mapping[str, str]) -> list[str]:
    """Imports against the order, direct or not, and pure modules that reach input or output."""
    graph = arrows(modules)
    outside = {name: {each.partition(".")[0] for each in imported_by(source)} for name, source in modules.items()}
    found = []
    for module in modules:
        if not module:
            continue
        reached = reachable(graph, module)
        found += [f"{module} reaches {each}" for each in sorted(reached) if layer(each) < layer(module)]
        if module.startswith("decisions.") or module.replace(".", "/") in ALSO_PURE:
            own = outside[module] & INPUT_OUTPUT
            found += [f"{module} imports {each}" for each in sorted(own)]
        if module.startswith("decisions."):
            through = {f"{each} imports {name}" for each in reached for name in outside[each] & INPUT_OUTPUT}
            found += [f"{module} reaches {each}" for each in sorted(through)]
    return found


def folder_cycles(modules: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of the worker's folders that import each other."""
    between = {
        (module.partition(".")[0], each.partition(".")[0])
        for module, imported in arrows(modules).items()
        for each in imported
        if "." in module and "." in each
    }
    return sorted((here, there) for here, there in between if here < there and (there, here) in between)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    modules = sources(package)
    assert modules
    for name, source in modules.items():
        packages = {each.partition(".")[0] for each in imported_by(source)} & set(PACKAGES)
        assert packages <= MAY_IMPORT[package], f"{package}.{name} imports {packages - MAY_IMPORT[package]}"


def test_only_the_local_target_of_the_verification_imports_the_local_stack() -> None:
    """And the command, which imports it only for that target. What deploys to AWS needs no emulator."""
    importing = {
        name
        for name, source in sources("deploy").items()
        if "local" in {each.partition(".")[0] for each in imported_by(source)}
    }
    assert importing == {"verify.local_target", "verify.__main__"}


def test_the_deployment_imports_only_the_emulator_of_the_package_and_only_there() -> None:
    """`wheel.smoke` runs where the package is installed, and not in the checkout."""
    importing = {
        name: {each for each in imported_by(source) if each.partition(".")[0] == "gatecast"}
        for name, source in sources("deploy").items()
        if name != "wheel.smoke"
    }
    assert {name for name, imported in importing.items() if imported} == {"verify.local_target"}
    assert all(each.startswith("gatecast.emulator") for each in importing["verify.local_target"])


def test_the_emulator_imports_nothing_of_ours_but_itself() -> None:
    modules = sources("gatecast/emulator")
    assert {"server", "config", "template", "pytest_plugin"} <= {name.partition(".")[0] for name in modules}
    for name, source in modules.items():
        ours = {each for each in imported_by(source) if each.partition(".")[0] in PACKAGES}
        assert all(f"{each}.".startswith("gatecast.emulator.") for each in ours), name


def test_only_the_command_of_that_name_imports_the_emulator() -> None:
    for name, source in sources("gatecast").items():
        if name not in {"emulator", "cli.emulator"} and not name.startswith("emulator."):
            assert not {each for each in imported_by(source) if f"{each}.".startswith("gatecast.emulator.")}, name


def test_every_module_of_the_worker_has_a_layer() -> None:
    assert {name.partition(".")[0] for name in sources("worker")} - {""} == {each for names in LAYERS for each in names}


def test_the_worker_keeps_the_order_of_its_layers() -> None:
    modules = sources("worker")
    assert not violations(modules)
    assert not folder_cycles(modules)


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("decisions.outcome", "import worker.transport.pool", "decisions.outcome reaches transport.pool"),
        ("decisions.rate", "from worker.transport import pool", "decisions.rate reaches transport.pool"),
        ("decisions.parts", "import random", "decisions.parts imports random"),
        ("decisions.claims", "from worker.batcher import Batcher", "decisions.claims reaches batcher imports asyncio"),
        ("transport.pool", "from worker.delivery.fanout import Fanout", "transport.pool reaches delivery.fanout"),
        ("delivery.engine", "from worker.pipeline.lease import Lease", "delivery.engine reaches pipeline.lease"),
        ("observe.health", "from worker.resilience import retry_forever", "observe.health reaches resilience"),
        ("pipeline.capacity", "import asyncio", "pipeline.capacity imports asyncio"),
        ("settings", "from worker.decisions import rate", "settings reaches decisions.rate"),
    ],
)
def test_an_import_against_the_order_is_found(module: str, line: str, found: str) -> None:
    modules = sources("worker")
    modules[module] += f"\n{line}\n"
    assert found in violations(modules)


def test_a_detour_is_found() -> None:
    """`settings` may be imported by all; through it a decision would reach the transport."""
    modules = sources("worker")
    modules["settings"] += "\nfrom worker.transport import pool\n"
    modules["decisions.backoff"] += "\nfrom worker import settings\n"
    found = violations(modules)
    assert "decisions.backoff reaches transport.pool" in found
    assert "decisions.outcome reaches transport.pool" in found, "it imports decisions.backoff"


def test_a_cycle_of_folders_is_found() -> None:
    modules = sources("worker")
    modules["transport.pool"] += "\nfrom worker.delivery import engine\n"
    assert ("delivery", "transport") in folder_cycles(modules)


def test_only_adapters_import_the_sdk() -> None:
    """And the service, which names the session's type."""
    importing = {
        name
        for name, source in sources("worker").items()
        if {each.partition(".")[0] for each in imported_by(source)} & SDK
    }
    assert {name for name in importing if not name.startswith("aws.")} == {"service"}


def test_one_module_imports_aioboto3() -> None:
    """So that leaving it, which frees the SDK's version, is a change of one module: docs/adr/0024."""
    importing = {
        f"{package}.{name}"
        for package in ("gatecast", "routes", "worker", "local", "tests")
        for name, source in sources(package).items()
        if "aioboto3" in {each.partition(".")[0] for each in imported_by(source)}
    }
    assert importing == {"worker.aws.session"}


def test_the_live_view_imports_nothing_of_ours_but_itself() -> None:
    for name, source in sources("gatecast/cli/top").items():
        ours = {each for each in imported_by(source) if each.partition(".")[0] in PACKAGES}
        assert all(each.startswith(LIVE_VIEW_MAY_IMPORT) for each in ours), name


def test_nothing_else_imports_the_command_line() -> None:
    for package in PACKAGES:
        for name, source in sources(package).items():
            if not name.startswith("cli."):
                assert not {each for each in imported_by(source) if f"{each}.".startswith("gatecast.cli.")}, name


@pytest.mark.parametrize("module", LIVE_VIEW_COMPUTING)
def test_the_live_view_computes_without_input_or_output(module: str) -> None:
    source = sources("gatecast/cli/top")[module]
    assert not {each.partition(".")[0] for each in imported_by(source)} & INPUT_OUTPUT


def test_the_client_shares_only_the_form_of_messages_with_the_server() -> None:
    for name, source in sources("gatecast/client").items():
        ours = {each for each in imported_by(source) if each.partition(".")[0] in PACKAGES}
        assert all(each.startswith(CLIENT_MAY_IMPORT) for each in ours), name


def test_one_module_of_the_client_imports_websockets() -> None:
    """So that everything else is tested without sockets. The rest of the package works without the extra."""
    importing = {
        name
        for name, source in sources("gatecast").items()
        if "websockets" in {each.partition(".")[0] for each in imported_by(source)}
    }
    assert importing == {"client.transport"}


def test_the_rooms_need_nothing_of_lambda() -> None:
    unwanted = {"aws_lambda_powertools", "boto3", "os"}
    for name, source in sources("gatecast/rooms").items():
        assert not {each.partition(".")[0] for each in imported_by(source)} & unwanted, name


def test_nothing_else_of_the_package_but_the_command_imports_the_rooms() -> None:
    """Without the extra `aws`, everything else can be imported."""
    for name, source in sources("gatecast").items():
        if name and not name.startswith(("rooms", "cli.")):
            assert not {each for each in imported_by(source) if each.startswith("gatecast.rooms")}, name


def test_nothing_else_of_the_package_but_the_command_imports_the_client() -> None:
    for name, source in sources("gatecast").items():
        if not name.startswith("client") and name != "cli.tail":
            assert not {each for each in imported_by(source) if each.startswith("gatecast.client")}, name


@pytest.mark.parametrize("module", CLIENT_PURE)
def test_the_client_decides_without_input_or_output(module: str) -> None:
    modules = sources("gatecast/client")
    graph = {
        name: {each.removeprefix("gatecast.client.") for each in imported_by(source)} & set(modules)
        for name, source in modules.items()
    }
    for name in {module, *reachable(graph, module)}:
        assert not {each.partition(".")[0] for each in imported_by(modules[name])} & {*INPUT_OUTPUT, "websockets"}, name
