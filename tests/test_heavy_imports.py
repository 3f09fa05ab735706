"""What a process does not import, since nobody in it asks for it."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from pipeline.heavy_imports import _missing, heavy_imports


def printed(script: str) -> list[str]:
    """The lines that a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


DEEPSPEED = """
import gc, sys
from pipeline.heavy_imports import import_deepspeed
deepspeed = import_deepspeed()
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # as ZeRO does with every optimizer
print([name for name in ("mlflow", "torch._inductor.compile_fx") if name in sys.modules])
import mlflow, torch
print(mlflow.__name__, deepspeed.__name__, compiler.compile() is torch.compile, import_deepspeed() is deepspeed)
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


@pytest.mark.slow
def test_deepspeed_comes_without_mlflow_and_the_compiler_and_keeps_neither_away():
    assert printed(DEEPSPEED)[-3:] == ["[]", "mlflow deepspeed True True", "True True"]


THREADS = """
import sys, threading, time
from pathlib import Path
from pipeline.tracking.node_monitor import NodeMonitor
from pipeline.tracking.server import connect
found = []
monitor = threading.Thread(target=lambda: found.append(len(NodeMonitor(None, 0, 1.0)._collectors()) >= 3))
tracker = threading.Thread(target=lambda: found.append(type(connect(Path("nowhere"))).__name__))
monitor.start()
while "mlflow" not in sys.modules:  # it has begun
    time.sleep(0)
tracker.start()
monitor.join()
tracker.join()
print(sorted(map(str, found)))
"""


@pytest.mark.slow
def test_two_threads_that_want_mlflow_at_once_both_get_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # which is not asked anything
    assert printed(THREADS)[-1:] == ["['MlflowClient', 'True']"]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["pipeline.training.stage", "tokenization.stage"])
def test_a_command_that_computes_nothing_imports_no_network(module):
    heavy = "mlflow", "deepspeed", "datasets", "matplotlib", "transformers.modeling_utils"
    script = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert printed(script) == ["[]"]


def test_the_network_is_imported_when_it_is_asked_for():
    import pipeline.model

    assert pipeline.model.AdaPonderForCausalLM.__module__ == "pipeline.model.modeling_adaponder"
    with pytest.raises(AttributeError, match="module 'pipeline.model' has no attribute 'nothing'"):
        _ = pipeline.model.nothing  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("collecting", [True, False])
def test_collecting_is_afterwards_as_it_was_before(collecting):
    try:
        (gc.enable if collecting else gc.disable)()
        with pytest.raises(ImportError), heavy_imports():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == collecting
    finally:
        gc.enable()


def test_a_missing_module_is_there_again_afterwards():
    with _missing("this"), pytest.raises(ImportError):
        import this  # noqa: F401
    assert "this" not in sys.modules
    with _missing("json"):
        import json
    assert json is sys.modules["json"]
