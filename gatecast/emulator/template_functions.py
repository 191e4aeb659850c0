"""The functions of a template: where their code is, and how they are run."""

import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gatecast.emulator.config import ConfigurationError
from gatecast.emulator.integration import Function
from gatecast.emulator.intrinsics import FUNCTIONS, Resource, Template
from gatecast.emulator.python_code import CodeFolder
from gatecast.emulator.remote import LambdaFunction

_ASSET: Final = "aws:asset:path"  # written by the CDK
_INLINE_MODULE: Final = "index"


class Functions:
    """Python functions whose code is in a folder run in this process, others at `invoke_endpoint`."""

    def __init__(self, template: Template, invoke_endpoint: str | None) -> None:
        self.left_out: list[str] = []
        self._template = template
        self._invoke_endpoint = invoke_endpoint
        self._folders: dict[Path, CodeFolder] = {}
        self._found: dict[str, Function | str] = {}
        self._variables: dict[str, str] = {}

    @property
    def folders(self) -> list[CodeFolder]:
        return list(self._folders.values())

    def get(self, name: str) -> Function | str:
        """The function with this logical id, or this name if it is not in the template; or why it cannot run."""
        if name not in self._found:
            self._found[name] = self._read(name)
        return self._found[name]

    def environment(self, api: str, region: str) -> dict[str, str]:
        """The variables of the functions that run here. Addresses of the API become the emulator's."""
        host = rf"{re.escape(api)}\.execute-api\.{re.escape(region)}\.amazonaws\.com"
        replacements = {
            rf"https://{host}/[\w-]+": "{endpoint}",
            rf"wss://{host}/[\w-]+": "{url}",
            rf"https://{host}": "http://{host}",
            rf"wss://{host}": "ws://{host}",
            host: "{host}",
        }
        variables = {}
        for name, given in self._variables.items():
            value = given
            for pattern, replacement in replacements.items():
                value = re.sub(pattern, replacement, value)
            variables[name] = value
        return variables

    def _read(self, name: str) -> Function | str:
        resource = self._template.resources.get(name)
        if resource is None or resource.type not in FUNCTIONS:
            return self._remote(name, f"{name} is not in the template")
        properties = {**self._template.globals("Function"), **resource.properties}
        runtime = self._template.text(properties.get("Runtime"))
        folder = self._folder(resource, properties) if runtime.startswith("python") else None
        if folder is None:
            what = runtime or self._template.text(properties.get("PackageType")) or "unknown runtime"
            given = self._template.text(properties.get("FunctionName"))
            return self._remote(given or name, f"{name} ({what}) is no Python function with its code in a folder")
        place = f"{self._template.path}: {name}: Handler"
        handler = folder.handler(self._template.text(properties.get("Handler")), place)
        self._add_variables(name, properties)
        if properties.get("Layers"):
            self.left_out.append(f"function {name}: Layers")
        return handler

    def _remote(self, name: str, reason: str) -> Function | str:
        if self._invoke_endpoint is None:
            return f"{reason}: run it elsewhere, and give --invoke-endpoint"
        return LambdaFunction.at(self._invoke_endpoint, name)

    def _folder(self, resource: Resource, properties: Mapping[str, Any]) -> CodeFolder | None:
        """The folder with the function's code; None if it is elsewhere."""
        code = properties.get("CodeUri", "." if resource.type.startswith("AWS::Serverless") else None)
        code = properties.get("Code", code) if resource.type == "AWS::Lambda::Function" else code
        inline = properties.get("InlineCode") or (code.get("ZipFile") if isinstance(code, dict) else None)
        if inline:
            return self._inline(resource.name, self._template.text(inline))
        if asset := resource.metadata.get(_ASSET):
            code = asset
        if not isinstance(code, str):
            return None
        path = (self._template.path.parent / code).resolve()
        return self._folders.setdefault(path, CodeFolder(path)) if path.is_dir() else None

    def _inline(self, name: str, source: str) -> CodeFolder:
        path = Path(tempfile.mkdtemp(prefix=f"gatecast-{name}-"))
        (path / f"{_INLINE_MODULE}.py").write_text(source, encoding="utf-8")
        folder = self._folders[path] = CodeFolder(path)
        weakref.finalize(folder, shutil.rmtree, path, ignore_errors=True)
        return folder

    def _add_variables(self, function: str, properties: Mapping[str, Any]) -> None:
        globals_ = (self._template.globals("Function").get("Environment") or {}).get("Variables") or {}
        own = (properties.get("Environment") or {}).get("Variables") or {}
        for name, given in {**globals_, **own}.items():
            place = f"function {function}: variable {name}"
            before = set(self._template.referenced)
            try:
                value = self._template.text(given)
            except ConfigurationError as error:
                self.left_out.append(f"{place}: {str(error).partition(': ')[2]}")
                continue
            for each in self._template.referenced - before:
                if not self._is_emulated(each):
                    self.left_out.append(
                        f"{place} is {value!r}: {each} ({self._template.resources[each].type}) is not emulated"
                    )
            if self._variables.setdefault(name, value) != value:
                self.left_out.append(
                    f"{place} is {value!r}: functions share one environment, where it is {self._variables[name]!r}"
                )

    def _is_emulated(self, name: str) -> bool:
        kind = self._template.resources[name].type
        return kind.startswith("AWS::ApiGatewayV2::") or kind in {*FUNCTIONS, "AWS::Serverless::WebSocketApi"}
