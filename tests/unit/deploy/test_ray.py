"""The application for Ray Serve: what its options are, in the code, the file and the page."""

import ast
import re

import yaml

from tests.unit.deploy.files import DEPLOY


def test_ray_options_in_the_readme_and_the_file_are_those_that_there_are() -> None:
    source = (DEPLOY / "ray" / "orcinus_on_ray.py").read_text()
    (options,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Options"]
    names = {
        node.target.id for node in options.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    readme = (DEPLOY / "ray" / "README.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", readme.partition("| option |")[2], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == names
    (application,) = yaml.safe_load((DEPLOY / "ray" / "serve.yaml").read_text())["applications"]
    assert set(application["args"]) <= names
    module, _, function = application["import_path"].partition(":")
    assert (DEPLOY / "ray" / f"{module}.py").is_file()
    assert any(isinstance(node, ast.FunctionDef) and node.name == function for node in ast.parse(source).body)
