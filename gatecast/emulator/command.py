"""The command: `python -m gatecast.emulator`, which `main` is, and `run`, which serves one API until it is stopped."""

import argparse
import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from gatecast.emulator.config import MAX_PORT, Config, ConfigurationError, read_config
from gatecast.emulator.environment import redirect_sdk, variables
from gatecast.emulator.faults import Faults
from gatecast.emulator.integration import Integration, Mock, Unavailable
from gatecast.emulator.python_code import CodeFolder, InvalidHandler
from gatecast.emulator.remote import HttpProxy, LambdaFunction
from gatecast.emulator.server import Gateway
from gatecast.emulator.template import read_template

DEFAULT_FILE: Final = "emulator.toml"
_RELOAD_SECONDS: Final = 0.5
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 if it was stopped, 1 if it could not run, 2 if an option or a file is wrong."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)  # handlers of this process use it
    try:
        return run(_read(options), reload=options.reload)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 1


def run(config: Config, *, reload: bool = False) -> int:
    """Serves the API until SIGINT or SIGTERM, and returns the exit code. Raises ConfigurationError.

    With `reload`, Python handlers are imported again whenever one of their files changes; clients stay connected.
    """
    return asyncio.run(_serve(config, reload=reload))


def gateway_of(config: Config, **options: Any) -> Gateway:
    """The emulator of this API, not started. `options` are those of Gateway that a configuration does not have."""
    return Gateway(
        config.routes,
        selection=config.selection,
        stage=config.stage,
        base_path=config.base_path,
        host=config.host,
        port=config.port,
        region=config.region,
        credentials=None if config.credentials is None else [config.credentials],
        limits=config.limits,
        faults=Faults(config.faults, seed=config.seed or 0),
        authorizer=config.authorizer,
        seed=config.seed,
        allowed_origins=config.allowed_origins,
        allowed_hosts=config.allowed_hosts,
        **options,
    )


def load(config: Config) -> None:
    """Imports the Python handlers. Raises ConfigurationError."""
    try:
        for folder in config.folders:
            folder.load()
    except InvalidHandler as error:
        raise ConfigurationError(str(error)) from error


async def _serve(config: Config, *, reload: bool) -> int:
    gateway = gateway_of(config)
    try:
        gateway.bind()
    except OSError as error:
        sys.stderr.write(f"{_explained(error, config)}\n")
        return 1
    redirect_sdk(gateway.endpoint)
    os.environ.update(
        variables(
            config.environment, endpoint=gateway.endpoint, url=gateway.url, region=config.region, environ=os.environ
        )
    )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        load(config)
        with contextlib.suppress(NotImplementedError):  # on Windows, Ctrl-C is a KeyboardInterrupt
            for number in _SIGNALS:
                loop.add_signal_handler(number, stopped.set)
        await gateway.start()
        sys.stdout.write(_description(config, gateway))
        sys.stdout.flush()
        async with asyncio.TaskGroup() as tasks:
            reloading = tasks.create_task(_reload(config.folders)) if reload else None
            await stopped.wait()
            if reloading:
                reloading.cancel()
    finally:
        with contextlib.suppress(NotImplementedError):
            for number in _SIGNALS:
                loop.remove_signal_handler(number)  # a second Ctrl-C does not wait for handlers
        await gateway.stop()
    return 0


async def _reload(folders: Sequence[CodeFolder]) -> None:
    while True:
        await asyncio.sleep(_RELOAD_SECONDS)
        for folder in folders:
            try:
                if await asyncio.to_thread(folder.reload_if_changed):
                    _log.info("handlers.reloaded folder=%s", folder)
            except Exception:  # noqa: BLE001 - a file that cannot be read must not end the emulator
                _log.exception("handlers.reload_failed folder=%s", folder)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gatecast.emulator", description="Emulates one WebSocket API of API Gateway on this machine."
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"a TOML file (default: {DEFAULT_FILE}, if it exists)"
    )
    parser.add_argument("--template", type=Path, metavar="FILE", help="a SAM or CloudFormation template")
    parser.add_argument("--api", metavar="NAME", help="the logical id of the API, if the template has several")
    parser.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the template"
    )
    parser.add_argument(
        "--invoke-endpoint",
        metavar="URL",
        help="where functions run that are not Python, for example SAM's start-lambda",
    )
    parser.add_argument("--host", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="0 takes a free one (default: 8080)")
    parser.add_argument("--reload", action="store_true", help="import Python handlers again when their files change")
    return parser.parse_args(arguments)


def _read(options: argparse.Namespace) -> Config:
    """Raises ConfigurationError."""
    config = None
    if wrong := [each for each in options.parameter if "=" not in each]:
        raise ConfigurationError(f"--parameter: {wrong[0]!r}: expected NAME=VALUE")
    if not options.template and (options.api or options.parameter):
        raise ConfigurationError("--api and --parameter have an effect only with --template")
    if options.template:
        parameters = dict(each.partition("=")[::2] for each in options.parameter)
        config = read_template(
            options.template, api=options.api, parameters=parameters, invoke_endpoint=options.invoke_endpoint
        )
    default = Path(DEFAULT_FILE)
    path = options.config or (default if config is None and default.exists() else None)
    if path:
        config = read_config(path, config, invoke_endpoint=options.invoke_endpoint)
    if config is None:
        raise ConfigurationError(f"there is no {DEFAULT_FILE} here: give --config FILE or --template FILE")
    if options.port is not None and not 0 <= options.port <= MAX_PORT:
        raise ConfigurationError(f"--port: {options.port}: expected 0 (a free port) to {MAX_PORT}")
    given = {"host": options.host, "port": options.port}
    return dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})


def _explained(error: OSError, config: Config) -> str:
    address = f"{config.host}:{config.port}"
    if error.errno == errno.EADDRINUSE:
        return f"port {config.port} is in use on {config.host}: stop the program that has it, or give another --port"
    return f"cannot listen on {address}: {error.strerror or error}"


def _description(config: Config, gateway: Gateway) -> str:
    """What is served, and what is not, as lines for a person."""
    width = max(map(len, config.routes))
    lines = [
        f"clients       {gateway.url}",
        f"@connections  {gateway.endpoint}",
        *(f"  {key:{width}}  {_integration(route.integration)}{'  (responds)' if route.response else ''}"
          for key, route in config.routes.items()),
    ]  # fmt: skip
    if config.authorizer:
        lines.append(f"authorizer    {_integration(config.authorizer.handler)}")
    lines += [f"left out: {each}" for each in config.left_out]
    if not _is_loopback(config.host):
        lines.append(f"warning: other machines can connect: --host is {config.host}, not the loopback address")
        lines.append(f"allowed hosts {', '.join(['localhost', config.host, *config.allowed_hosts])}")
    return "\n".join([*lines, ""])


def _integration(integration: Integration) -> str:
    match integration:
        case Mock():
            return "mock"
        case HttpProxy():
            return f"{integration.method} {integration.url}"
        case LambdaFunction():
            return f"lambda:{integration.name} at {integration.url}"
        case Unavailable():
            return "fails"
    return repr(integration)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
