"""`trainers` is plain torch: it imports where Ray, MLflow, pydantic and our packages are absent."""

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import trainers

BLOCKED = ("ray", "mlflow", "pydantic", "orchestrator", "dashboards", "sweeps")

SCRIPT = """
import importlib, pkgutil, sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it raises ImportError
import trainers
names = [m.name for m in pkgutil.walk_packages(trainers.__path__, "trainers.")]
for name in names:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        getattr(module, public)
print(len(names))
"""


def test_every_module_imports_without_the_orchestration():
    script = SCRIPT.format(blocked=BLOCKED)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = [m.name for m in pkgutil.walk_packages(trainers.__path__, "trainers.")]
    assert int(done.stdout) == len(modules) > 20


def test_no_module_names_a_blocked_package_even_inside_a_function():
    for path in Path(trainers.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & set(BLOCKED), path


def test_trainers_name_no_table_or_figure_of_the_paper():
    for path in Path(trainers.__path__[0]).rglob("*.py"):
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        assert not any(re.search(r"table_|(^|_)figure", name) for name in names), path
