"""Nothing in the project can run what a stranger wrote: read off its own syntax trees, with each exception reviewed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.syntax import PACKAGES, Source, calls, imports, names, read, sources

FORBIDDEN_MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "jsonpickle", "shelve", "marshal", "joblib", "code",
    "codeop", "runpy", "pty",
}  # fmt: skip
FORBIDDEN_NAMES = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)"
    r"|os\.(system|popen|startfile|posix_spawnp?|(exec|spawn)[lv]p?e?)"
    r"|subprocess\.(getoutput|getstatusoutput)"
    r"|yaml\.(load|load_all|full_load|full_load_all|unsafe_load|unsafe_load_all)"
    r"|torch\.(hub|package|jit\.load|serialization\.(add_)?safe_globals)(\..*)?"
    r"|torch\.distributed\.((all_)?gather_object|(broadcast|scatter|send|recv)_object(_list)?)"  # they pickle
    r"|pandas\.read_pickle|numpy\.lib\.format\.read_array|tempfile\.mktemp"
    r"|importlib\.(import_module|util\.spec_from_file_location)"
    r"|webdataset\.(?!(DataPipeline|WebLoader|TarWriter|ShardWriter|map)$).*"  # its openers and decoders run things
)
SUBPROCESS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}

# "path: what" -> why that is right there. Reviewed: a new line here needs a reason as good.
ALLOWED = {
    "pretrain/config.py: importlib.util.spec_from_file_location":
        "a config is Python by design, the user's own file named on the command line (docs/security.md)",
    "pretrain/config_json.py: importlib.import_module":
        "below pretrain and masking alone, and only a dataclass of that very module is taken",
    "masking/strategies/__init__.py: importlib.import_module": "the modules that lie in that folder",
    "pretrain/data/rand_augment.py: importlib.import_module": "timm.NAME, NAME from two calls in that file",
    "pretrain/export/parity.py: importlib.import_module": "libraries named in pretrain/export/, nothing from a file",
    "pretrain/weights_file.py: torch.serialization.safe_globals":
        "argparse.Namespace, a bag of names without a method that runs; published checkpoints of MAE hold one",
    "benchmarks/goals.py: importlib.import_module": "campaigns named in benchmarks/goals_list.py",
    "benchmarks/loader.py: webdataset.WebDataset": "the plain webdataset that ours is measured against, own shards",
    "benchmarks/broken_shards.py: webdataset.WebDataset": "the same, on shards damaged there",
    "benchmarks/broken_shards.py: webdataset.reraise_exception": "the same",
}  # fmt: skip


def test_nothing_runs_what_a_stranger_could_have_written() -> None:
    found = [problem for source in sources(*PACKAGES, "benchmarks") for problem in dangers(source)]
    assert [f"{problem} line {line}" for problem, line in found if problem not in ALLOWED] == []


def test_every_exception_is_still_needed() -> None:
    found = {problem for source in sources(*PACKAGES, "benchmarks") for problem, _ in dangers(source)}
    assert set(ALLOWED) - found == set()


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "import _pickle as json", "import marshal", "import shelve", "import joblib",
        "from dill import loads", "import cloudpickle", "def f():\n    import pickle", "import runpy",
        "import torch; torch.load(path)", "import torch; torch.load(path, weights_only=False)",
        "import torch; torch.load(path, weights_only=flag)", "from torch import load; load(path)",
        "import torch as t; t.load(path, None, weights_only=1)", "import torch; read = torch.load",
        "import torch; torch.hub.load('a/b', 'c')", "from torch.hub import load_state_dict_from_url",
        "import torch; torch.jit.load(path)", "import torch; torch.serialization.add_safe_globals([x])",
        "import numpy as np; np.load(path, allow_pickle=True)", "import numpy as np; np.load(path)",
        "import numpy as np; np.load(path, allow_pickle=flag)",
        "import yaml; yaml.load(text)", "import yaml; yaml.unsafe_load(text)",
        "from yaml import full_load; full_load(x)",
        "eval(text)", "exec(compile(text, 'x', 'exec'))", "list(map(eval, texts))", "import builtins; builtins.exec(x)",
        "__import__(name)", "import importlib; importlib.import_module(name)",
        "import os; os.system(command)", "from os import popen; popen(command)", "import os; os.execvp(a, b)",
        "import subprocess; subprocess.run(command, shell=True)",
        "from subprocess import Popen; Popen(words, shell=flag)",
        "import subprocess; subprocess.run('squeue ' + job)", "import subprocess; subprocess.check_output(f'ls {x}')",
        "import subprocess\ncommand = 'ls ' + x\nsubprocess.run(command)", "import subprocess; subprocess.getoutput(x)",
        "import subprocess\ndef f(command: str): subprocess.run(command)",
        "import subprocess; subprocess.run(args=text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)", "f(trust_remote_code=flag)",
        "import tarfile; tarfile.open(path).extractall(folder)", "import tempfile; tempfile.mktemp()",
        "import webdataset as wds; wds.WebDataset(url).decode()", "from webdataset import gopen; gopen(url)",
        "import webdataset as wds; wds.filters.xdecode()",
        "import torch.distributed as dist; dist.broadcast_object_list(x)",
        "import torch.distributed as dist; dist.all_gather_object(x, y)",
    ],
)  # fmt: skip
def test_the_lint_sees(tmp_path: Path, line: str) -> None:
    (tmp_path / "case.py").write_text(line)
    assert list(dangers(read(tmp_path / "case.py", tmp_path)))


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch.load(path, weights_only=True)", "import numpy as np; np.load(path, allow_pickle=False)",
        "import subprocess; subprocess.run(['squeue', job], shell=False)",
        "import subprocess\ncommand = [a, b]\nsubprocess.Popen(command)",
        "import subprocess\ndef ask(command: list[str]): subprocess.run(command)",
        "model.eval()", "import torch; torch.compile(model)", "import re; re.compile(text)",
        "class C:\n    compile: bool",
        "import tarfile; tarfile.open(path).extractall(folder, filter='data')", "f(trust_remote_code=False)",
        "import webdataset as wds; wds.DataPipeline(source, wds.map(f))", "text.decode()",
        "import importlib; importlib.import_module('torchvision')",
    ],
)  # fmt: skip
def test_the_lint_lets_pass(tmp_path: Path, line: str) -> None:
    (tmp_path / "case.py").write_text(line)
    assert list(dangers(read(tmp_path / "case.py", tmp_path))) == []


def dangers(source: Source) -> Iterator[tuple[str, int]]:
    """What a file does that could run a stranger's code, as ("path: what", line)."""
    for imported in imports(source):
        if imported.name.partition(".")[0] in FORBIDDEN_MODULES or FORBIDDEN_NAMES.fullmatch(imported.name):
            yield f"{source.path}: {imported.name}", imported.line
    bound = {id(node) for node in ast.walk(source.tree) if isinstance(node, ast.Name) and _is_bound(node)}
    called = {id(call.func) for _, call in calls(source)}
    harmless = {id(call.func) for name, call in calls(source) if name == "importlib.import_module" and _is_text(call)}
    for node, name in _mentions(source):
        is_hidden = name in ("torch.load", "numpy.load") and id(node) not in called  # called later, as anything
        if (FORBIDDEN_NAMES.fullmatch(name) or is_hidden) and id(node) not in bound | harmless:
            yield f"{source.path}: {name}", node.lineno
    for name, call in calls(source):
        if _is_bad(name, call, source):
            yield f"{source.path}: {name}", call.lineno


def _mentions(source: Source) -> Iterator[tuple[ast.Name | ast.Attribute, str]]:
    """Every dotted name with its node; of a.b.c only the whole."""
    spelled = iter(names(source))
    inner: set[int] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            name, _ = next(spelled)
            if id(node) not in inner:
                yield node, name
            inner |= {id(node.value)} if isinstance(node, ast.Attribute) else set()


def _is_bound(node: ast.Name) -> bool:
    """A name of our own that is given a value, such as a setting called compile."""
    return not isinstance(node.ctx, ast.Load)


def _is_bad(name: str, call: ast.Call, source: Source) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    return (
        (name == "torch.load" and not _is_constant(keywords.get("weights_only"), True))
        or (name == "numpy.load" and not _is_constant(keywords.get("allow_pickle"), False))
        or any(key in keywords and not _is_constant(keywords[key], False)
               for key in ("allow_pickle", "shell", "trust_remote_code"))
        or (name.endswith(".extractall") and not _is_constant(keywords.get("filter"), "data"))
        or (name in SUBPROCESS and not (call.args and _is_list(call.args[0], source)))
    )  # fmt: skip


def _is_list(node: ast.expr, source: Source) -> bool:
    """Whether a command is a list of words: written as one, or a name that is nothing else in this file."""
    if isinstance(node, ast.List):
        return True
    if not isinstance(node, ast.Name):
        return False
    values: list[ast.expr | None] = []
    for other in ast.walk(source.tree):
        if isinstance(other, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in other.targets):
            values.append(other.value)
        if isinstance(other, ast.arg) and other.arg == node.id:
            values.append(other.annotation)
    return bool(values) and all(
        isinstance(value, ast.List) or (value is not None and ast.unparse(value) == "list[str]") for value in values
    )


def _is_text(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant)


def _is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is type(value) and node.value == value
