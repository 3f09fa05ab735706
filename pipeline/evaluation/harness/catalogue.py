"""The harness's tasks by name, with their data; what is wrong with one is told in a line that names it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from pipeline.console import console
from pipeline.durable import sha256_file, sha256_json
from pipeline.errors import UserError, WorldError

AVERAGE = "average"
"""Stands where a task's name does, in the names of metrics."""
FEWSHOT_SEED = 1234
"""The harness's own default: which examples come before a question."""


def included_content(include_path: str | None) -> str | None:
    """SHA-256 of all files of the folder of tasks; None without one. `UserError` where there is no such folder."""
    if include_path is None:
        return None
    folder = Path(include_path)
    if not folder.is_dir():
        raise UserError(f"evaluate.tasks.include_path: there is no folder {folder}")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sha256_json({str(path.relative_to(folder)): sha256_file(path) for path in files})


class Catalogue:
    """All tasks that there are. Slow to make where the harness's own are needed: it reads thousands of files."""

    def __init__(self, names: list[str], include_path: str | None) -> None:
        """Raises `UserError` naming what is no task."""
        self._include_path = include_path
        self.manager: Any = self._local(names)
        if self.manager is None:
            console.print("evaluate: reading what tasks the harness has")
            self.manager = self._manager(include_defaults=True)
        for name in names:
            if name not in self.manager.all_tasks and not Path(name).is_file():
                raise UserError(self._unknown(name))

    def load(self, names: list[str], shots: int) -> list[Any]:
        """Tasks and groups with their data, set to `shots` examples before a question; one request of each was made.

        A task whose own file fixes the number at 0 is left out of other numbers. Raises `WorldError` for data that
        cannot be had, `UserError` for a task that is broken; both name the task.
        """
        loaded = []
        for name in names:
            found = self._load(name)
            members = {member: _members(member) for member in found}
            for task in (task for tasks in members.values() for task in tasks):
                if task.task_name == AVERAGE:
                    raise UserError(f"a task is called {AVERAGE}, as the average of all is: give it another name")
            kept = [member for member in found if not shots or not any(map(_is_zero_shot, members[member]))]
            for task in (task for member in kept for task in members[member]):
                task.set_config(key="num_fewshot", value=shots)
                self._try(task, shots)
            loaded += kept
        return loaded

    def _local(self, names: list[str]) -> Any:
        """The tasks of include_path, if they are all that is needed: single tasks, not groups of the harness's."""
        if self._include_path is None:
            return None
        local = self._manager(include_defaults=False)
        return local if all(name in local.all_subtasks for name in names) else None

    def _manager(self, include_defaults: bool) -> Any:
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=self._include_path, include_defaults=include_defaults)

    def _unknown(self, name: str) -> str:
        """The harness passes over files that it cannot read; they may be where the task is."""
        from lm_eval.tasks._yaml_loader import load_yaml

        for path in sorted(Path(self._include_path).rglob("*.yaml")) if self._include_path else []:
            try:
                load_yaml(path, resolve_func=False)
            except Exception as error:  # whatever a parser raises
                return f"evaluate.tasks.names: there is no task {name}; {path} cannot be read: {_line(error)}"
        return (
            f"evaluate.tasks.names: there is no task {name}: `lm_eval ls tasks` tells the harness's own, "
            "evaluate.tasks.include_path is for yours"
        )

    def _load(self, name: str) -> list[Any]:
        try:
            found = self.manager.load([name])
        except OSError as error:  # what datasets raises where there is no file, no data set or no network
            raise WorldError(
                f"the data of task {name} cannot be had ({_line(error)}): fetch them where there is network, or set "
                "evaluate.tasks.include_path to a folder with a task of this name over local data (docs/evaluation.md)"
            ) from error
        except Exception as error:  # whatever a task's own file or code raises
            raise UserError(f"task {name} is broken: {type(error).__name__}: {_line(error)}") from error
        members = {task.task_name for group in found["groups"].values() for task in group.get_all_tasks()}
        inner = {child for children in found["group_map"].values() for child in children}
        groups = [group for key, group in found["groups"].items() if key not in inner]
        return groups + [task for key, task in found["tasks"].items() if key not in members]

    @staticmethod
    def _try(task: Any, shots: int) -> None:
        """Make a first request, so that what a template or too few examples break is found before the rest is done."""
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        progress = io.StringIO()
        try:
            with contextlib.redirect_stderr(progress):
                task.build_all_requests(limit=1)
        except Exception as error:  # whatever a task's own file or code raises
            raise UserError(
                f"task {task.task_name} makes no request with {shots} examples before it: "
                f"{type(error).__name__}: {_line(error)}"
            ) from error


def _members(found: Any) -> list[Any]:
    from lm_eval.api.group import Group

    return found.get_all_tasks() if isinstance(found, Group) else [found]


def _is_zero_shot(task: Any) -> bool:
    return task.get_config("num_fewshot") == 0


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
