"""Imports that take seconds, made shorter: torch, transformers and MLflow by a fifth, DeepSpeed to a third."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any


@contextmanager
def heavy_imports() -> Iterator[None]:
    """No garbage is looked for inside.

    A large library makes hundreds of thousands of objects, nearly all of which stay; looking through all that there are
    again and again is a fifth of the time of its import.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def import_deepspeed() -> ModuleType:
    """`import deepspeed` without what no stage of this project uses of it.

    Its autotuner would import MLflow, on every rank. Its Muon optimizer is handed to torch.compile as soon as ZeRO
    looks whether it is the one in use, whereupon torch would import its compiler. To be called before threads are
    started: meanwhile MLflow cannot be imported.
    """
    if "deepspeed" not in sys.modules:
        with heavy_imports():
            with _missing("mlflow"):
                import deepspeed.runtime.compiler
            compiler: Any = deepspeed.runtime.compiler
            compile_function = compiler.compile
            compiler.compile = lambda: lambda function: function
            try:
                with suppress(ImportError):  # of a DeepSpeed that keeps it elsewhere, which only takes longer
                    import deepspeed.runtime.zero.muon.muon_optimizer
            finally:
                compiler.compile = compile_function
        gc.freeze()  # what the imports made stays: no later collection looks through it either
    return sys.modules["deepspeed"]


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """Importing `name` fails inside, as where it is not installed; what is imported already stays."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[name]
