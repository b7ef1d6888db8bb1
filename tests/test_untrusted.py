"""What comes from outside (sweep files, stores, bundles) names no file elsewhere, runs no code."""

from __future__ import annotations

import ast
import io
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator import paths
from orchestrator.bundlefile import read_pack
from orchestrator.errors import SpecError, StoreError, UserError
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from tests.sweep_files import write
from trainers.data.archive import _ArrayUnpickler
from trainers.data.catalogue import OFFICIAL

ROOT = Path(__file__).parent.parent
TINY = "name: tiny\nset: {dataset: digits, strategy: A, training: {steps: 5}}\n"
PACKAGES = ("orchestrator", "trainers", "dashboards", "sweeps")

NASTY = [
    "..", ".", "../x", "x/../../y", "/etc/passwd", "~root", "C:\\x", "a\\..\\b", "a\0b", "a\n",
    "\n", " ", ".hidden", "a..b", "x" * 300, "con/..", "%2e%2e/x", "．．/x", "a/b", "file:///etc",
    "-rf", "$(id)", "`id`", "{{7*7}}", "<script>", "\u202e", "s3://b", "a;b", "a|b", "",
]  # fmt: skip
nasty = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=40),
    st.text(alphabet="./\\~\0\n ab", max_size=12),
    st.lists(st.sampled_from(["..", ".", "a", "", "~", "\\"]), max_size=6).map("/".join),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("inside") / "store")


@given(name=nasty)
@settings(max_examples=300, deadline=None)
def test_a_name_is_one_component_or_refused(name: str) -> None:
    for place in (paths.plan_json, paths.report_dir, paths.dataset_dir, paths.run_json):
        try:
            rel = place(name)
        except StoreError:
            continue
        assert rel.split("/")[1] == name
        assert name not in ("", ".", "..")
        assert not set(name) & set("/\\\0\n")


@given(rel=nasty)
@settings(max_examples=300, deadline=None)
def test_what_a_store_writes_lies_in_it(store: Store, rel: str) -> None:
    try:
        store.write_bytes(rel, b"x")
    except StoreError:
        return
    assert (store.root / rel).resolve().is_relative_to(store.root.resolve())
    assert store.read_bytes(rel) == b"x"
    store.delete(rel)


def sweep_with(**items: object) -> str:
    item = {"table": "t", "rows": ["strategy"], "columns": ["ipc"], **items}
    return TINY + f"report:\n  - {json.dumps(item)}\n"


@given(name=nasty)
@example(name="good_name-1")
@settings(max_examples=60, deadline=None)
def test_names_in_sweep_files(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Of the sweep, of a table, of a figure: good for a file's name, or refused."""
    folder = tmp_path_factory.mktemp("names")
    texts = {
        "sweep": TINY.replace("name: tiny", f"name: {json.dumps(name)}"),
        "table": sweep_with(table=name),
        "figure": TINY + f"report:\n  - {json.dumps({'figure': name, 'x': 'step'})}\n",
    }
    for what, text in texts.items():
        try:
            (sweep,) = load_sweeps([write(folder, text, f"{what}.yaml")], OFFICIAL)
        except SpecError:
            assert name != "good_name-1"
            continue
        for used in (sweep.name, *(item.name for item in sweep.report)):
            assert paths.safe_name(used) == used
            assert not set(used) & set(" ./\\~$%`;|<>{}")


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("how", ["up", "absolute", "below"])
def test_a_reference_stays_beside_its_sweep_file(tmp_path: Path, how: str, link: bool) -> None:
    """Reports show its numbers; somebody else's sweep file must not read this machine's files."""
    inside, outside = tmp_path / "sweeps", tmp_path / "secret.csv"
    inside.mkdir()
    outside.write_text(
        "strategy,ipc,metric,kind,value,std,status\nA,full,top1_h,mean,12.5,0.1,printed\n"
    )
    name = {"up": "../secret.csv", "absolute": str(outside), "below": "mine.csv"}[how]
    if how == "below" and link:
        (inside / "mine.csv").symlink_to(outside)
    elif how == "below":
        (inside / "mine.csv").write_text(outside.read_text())
    file = write(inside, sweep_with(reference=name))
    if how == "below" and not link:
        (sweep,) = load_sweeps([file], OFFICIAL)
        assert sweep.report[0].references
        return
    with pytest.raises(SpecError) as caught:
        load_sweeps([file], OFFICIAL)
    assert "reference" in str(caught.value)
    assert "12.5" not in str(caught.value)


@pytest.mark.parametrize("member", ["../../runs.jsonl", "/etc/passwd", "a/b.jsonl", "x.jsonl\n"])
def test_a_bundle_names_no_file_elsewhere(tmp_path: Path, member: str) -> None:
    entry = {"bytes": 1, "sha256": "0" * 64}
    manifest = {"format": 1, "semantics": 1, "files": {member: entry}}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no bundle has"):
        read_pack(str(tmp_path))


# -- nothing runs -------------------------------------------------------------------------------

ALLOWED_PICKLE = {
    "trainers/checkpoint.py": "the error that torch.load(weights_only=True) raises",
    "trainers/data/archive.py": "CIFAR's own files: MD5 first, then an unpickler of arrays alone",
}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.AST) -> list[tuple[str, dict[str, ast.expr]]]:
    return [
        (dotted(node.func), {word.arg or "**": word.value for word in node.keywords})
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def imported(tree: ast.AST) -> set[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_nothing_untrusted_is_unpickled() -> None:
    assert len(sources()) > 100
    for path in sources():
        tree = ast.parse(path.read_text())
        name = str(path.relative_to(ROOT))
        assert name in ALLOWED_PICKLE or not imported(tree) & MODULES, name
        check_calls(name, tree)


def check_calls(file: str, tree: ast.AST) -> None:
    for name, words in calls(tree):
        where = f"{file}: {name}"
        if name == "torch.load":
            assert is_constant(words.get("weights_only"), True), where
        if name in ("np.load", "numpy.load"):
            assert is_constant(words.get("allow_pickle"), False), where
        assert not is_constant(words.get("allow_pickle"), True), where
        assert not is_constant(words.get("weights_only"), False), where
        assert name not in ("eval", "exec", "pickle.loads", "pickle.load", "os.system"), where
        assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), where
        assert not is_constant(words.get("shell"), True), where


def test_the_unpickler_of_arrays_runs_no_code() -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("run",))

    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        _ArrayUnpickler(io.BytesIO(pickle.dumps(Harm()))).load()
