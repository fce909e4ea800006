"""The import rules: config <- engine <- server, and what must never pull in torch.

Each rule is checked twice: by reading the sources, which names the line that breaks it, and by importing in a
process of its own, which also sees what third-party packages drag in.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("config", "engine", "server")
MAY_IMPORT = {"config": {"config"}, "engine": {"config", "engine"}, "server": {"config", "engine", "server"}}

# Driven by a simulator in milliseconds; they decide, and never touch a tensor.
PURE = (
    "engine.admission_control",
    "engine.batching",
    "engine.block_manager",
    "engine.client_quotas",
    "engine.core",
    "engine.errors",
    "engine.fair_queue",
    "engine.messages",
    "engine.observer",
    "engine.outputs",
    "engine.pacing",
    "engine.preparation",
    "engine.probation",
    "engine.recovery",
    "engine.request",
    "engine.sampling_params",
    "engine.scheduler",
    "engine.step_time",
    "engine.vigil",
    "engine.waiting_queue",
)
HEAVY = frozenset({"torch", "transformers"})
# Web and OpenAI belong to the server package alone.
WEB = frozenset({"fastapi", "starlette", "uvicorn", "openai", "prometheus_client"})


def path_of(module: str) -> Path | None:
    """The source of one of our modules, or None."""
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def modules_of(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts]


def imports_in(nodes: Iterator[ast.AST]) -> set[str]:
    """Full names of what is imported; `from a import b` gives both `a` and `a.b`, which may be a module."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def tree_of(module: str) -> ast.Module:
    path = path_of(module)
    assert path is not None, f"there is no module {module}"
    return ast.parse(path.read_text(), filename=str(path))


def all_imports(module: str) -> set[str]:
    """Imports anywhere in the module, inside functions too."""
    return imports_in(ast.walk(tree_of(module)))


def imports_at_import(module: str) -> set[str]:
    """Imports that run when the module is imported: not those in functions, nor under `if TYPE_CHECKING`."""
    return imports_in(executed(tree_of(module)))


def executed(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from executed(child)


def parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def top(name: str) -> str:
    return name.partition(".")[0]


def reachable(module: str) -> dict[str, str]:
    """Every top-level package that importing `module` reaches through our own code, and who imports it."""
    assert path_of(module) is not None, f"there is no module {module}"
    reached: dict[str, str] = {}
    seen, queue = set(), [module]
    while queue:
        current = queue.pop()
        if current in seen or path_of(current) is None:
            continue
        seen.add(current)
        for name in imports_at_import(current) | parents(current):
            if top(name) in OURS:
                queue.append(name)
            else:
                reached.setdefault(top(name), current)
    return reached


def imported_packages(*modules: str) -> set[str]:
    """Top-level packages in `sys.modules` after really importing `modules` in a new interpreter."""
    script = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {top(name) for name in json.loads(done.stdout)}


@pytest.mark.parametrize("package", OURS)
def test_package_imports_only_what_lies_below_it(package: str) -> None:
    modules = modules_of(package)
    assert modules
    for module in modules:
        ours = {top(name) for name in all_imports(module)} & {*OURS, "demo", "bench", "tests"}
        assert ours <= MAY_IMPORT[package], f"{module} imports {sorted(ours - MAY_IMPORT[package])}"


@pytest.mark.parametrize("package", ["config", "engine"])
def test_package_knows_nothing_of_the_web(package: str) -> None:
    for module in modules_of(package):
        web = {top(name) for name in all_imports(module)} & WEB
        assert not web, f"{module} imports {sorted(web)}"


@pytest.mark.parametrize("package", ["config", "server"])
def test_package_never_names_torch(package: str) -> None:
    for module in modules_of(package):
        heavy = {top(name) for name in all_imports(module)} & {"torch"}
        assert not heavy, f"{module} imports {sorted(heavy)}"


@pytest.mark.parametrize("module", PURE)
def test_pure_module_names_no_heavy_package_anywhere(module: str) -> None:
    assert not {top(name) for name in all_imports(module)} & HEAVY


@pytest.mark.parametrize("module", [*PURE, "server.app", "server.cli"])
def test_module_reaches_no_heavy_package_through_ours(module: str) -> None:
    heavy = {name: by for name, by in reachable(module).items() if name in HEAVY}
    assert not heavy, f"importing {module} reaches {heavy}"


def test_importing_the_pure_engine_imports_no_torch() -> None:
    assert not imported_packages(*PURE) & HEAVY


def test_importing_the_settings_imports_no_torch() -> None:
    assert not imported_packages(*modules_of("config")) & HEAVY


@pytest.mark.parametrize("module", ["server.app", "server.cli"])
def test_importing_the_server_imports_no_torch(module: str) -> None:
    assert not imported_packages(module) & HEAVY


def test_scheduler_and_model_runner_share_messages_and_nothing_else() -> None:
    runner = {name for name in all_imports("engine.model_runner") if path_of(name) is not None}
    scheduler = {name for name in all_imports("engine.scheduler") if path_of(name) is not None}
    plain_data = {"engine.messages", "engine.sampling_params", "engine.errors", "config.engine_config"}
    assert runner & scheduler <= plain_data
    assert "engine.scheduler" not in runner
    assert "engine.model_runner" not in scheduler


def test_checker_sees_imports_in_functions_and_skips_those_for_types() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
def load():
    import transformers
class Kept:
    import json
"""
    tree = ast.parse(source)
    assert imports_in(ast.walk(tree)) >= {"torch", "transformers", "json"}
    assert imports_in(executed(tree)) == {"typing", "typing.TYPE_CHECKING", "json"}
