"""The plan as tables for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from launch.plan.layouts import CHECKPOINTING
from pipeline.console import console

NAMED = ("A100", "H100", "H200", "B200", "MI300X")
"""GPUs whose days are shown beside those of the chosen one."""


def tell(found: dict[str, Any]) -> None:
    """Print what `launch.plan.stage.make_plan` found."""
    console.print(_network(found))
    console.print(_training(found))
    console.print(_disk(found))
    for nodes in found["nodes"]:
        console.print(_memory(nodes, found))
    console.print(_layouts(found))
    console.print(
        "a cell: GiB a rank with the recipe's micro batch / rows of the largest that fits (-: none); *: taken"
    )
    for nodes in found["nodes"]:
        console.print(f"[bold]{nodes['nodes']} x {found['gpu']['per_node']}[/bold]: {nodes['why']}", highlight=False)


def _network(found: dict[str, Any]) -> Table:
    network = found["network"]
    table = _table(f"{found['recipe']}: parameters ({network['source']}; {network['max_passes']} passes)", "part")
    table.add_column("parameters", justify="right")
    for part, count in network["parameters"].items():
        table.add_row(part, f"{count:,}", end_section=part == "gates")
    return table


def _training(found: dict[str, Any]) -> Table:
    training = found["training"]
    table = _table("work of the whole run", "")
    table.add_column("", justify="right")
    table.add_row("tokens a step", f"{training['tokens_per_step']:,}")
    table.add_row("steps", f"{training['steps']:,}")
    table.add_row("tokens", f"{training['tokens']:,}", end_section=True)
    for part, count in training["multiply_accumulates"].items():
        table.add_row(f"multiply-accumulates: {part}", f"{count:.3g}")
    table.add_row(f"computed again ({training['activation_checkpointing']})", f"{training['recomputed']['total']:.3g}")
    table.add_row("mean depth counted", f"{training['mean_depth']:.2f}", end_section=True)
    for nodes in found["nodes"]:
        place = f"{nodes['nodes']} x {found['gpu']['per_node']}"
        shown = [name for name in dict.fromkeys((found["gpu"]["name"], *NAMED)) if name in nodes["days"]]
        for name in shown:
            cost = ""
            if name == found["gpu"]["name"] and nodes["gpu_hours"] is not None:
                cost = f", {nodes['gpu_hours']:,.0f} GPU hours"
                cost += f", cost {nodes['cost']:,.0f}" if nodes["cost"] is not None else ""
            table.add_row(f"days on {place} {name} at MFU {found['gpu']['mfu']:g}", f"{nodes['days'][name]:.2f}{cost}")
    return table


def _disk(found: dict[str, Any]) -> Table:
    disk = found["disk"]
    table = _table("disk", "")
    table.add_column("", justify="right")
    table.add_row("a checkpoint", _size(disk["checkpoint"]))
    table.add_row(f"checkpoints at the most ({disk['most']} at once)", _size(disk["checkpoints_bytes"]))
    table.add_row("checkpoints left at the end", f"{disk['kept']:,}")
    table.add_row("checkpoints written over the run", _size(disk["written"]))
    table.add_row("shards, if no row is read twice", _size(disk["shards"]))
    return table


def _memory(nodes: dict[str, Any], found: dict[str, Any]) -> Table:
    """Parts by strategy, under the recipe's activation checkpointing."""
    own, rows = nodes["recipe_layout"], found["training"]["micro_batch"]
    kind = own["activation_checkpointing"]
    table = _table(
        f"memory of a rank at its peak, GiB: {nodes['nodes']} x {found['gpu']['per_node']}, micro batch {rows}, "
        f"activation_checkpointing {kind}",
        "part",
    )
    layouts = [one for one in nodes["layouts"] if one["activation_checkpointing"] == kind]
    for one in layouts:
        chosen = one["strategy"] == own["strategy"]
        table.add_column(f"[bold]{one['strategy']}[/bold]" if chosen else one["strategy"], justify="right")
    parts = list(dict.fromkeys(part for one in layouts for part in one["parts"]))
    for part in parts:
        table.add_row(part, *(_gib(one["parts"].get(part)) for one in layouts), end_section=part == parts[-1])
    table.add_row("peak", *(_gib(one["peak_bytes"]) for one in layouts))
    table.add_row("when", *(one["peak_at"] for one in layouts), end_section=True)
    for part in dict.fromkeys(part for one in layouts for part in one["host_parts"]):
        table.add_row(f"main memory: {part}", *(_gib(one["host_parts"].get(part)) for one in layouts))
    if found["gpu"]["name"] != "cpu":
        table.add_row("main memory at the start", *(_gib(one["host_start_bytes"]) for one in layouts))
    return table


def _layouts(found: dict[str, Any]) -> Table:
    table = _table("layouts: activation_checkpointing, and what it computes again", "nodes")
    table.add_column("strategy")
    shares = {one["activation_checkpointing"]: one["recomputed_share"] for one in found["nodes"][0]["layouts"]}
    for kind in CHECKPOINTING:
        table.add_column(f"{kind} +{100 * shares[kind]:.0f} %", justify="right")
    for nodes in found["nodes"]:
        strategies = list(dict.fromkeys(one["strategy"] for one in nodes["layouts"]))
        for strategy in strategies:
            cells = [_cell(one, nodes["take"]) for one in nodes["layouts"] if one["strategy"] == strategy]
            table.add_row(str(nodes["nodes"]), strategy, *cells, end_section=strategy == strategies[-1])
    return table


def _cell(layout: dict[str, Any], taken: dict[str, Any] | None) -> str:
    text = f"{layout['peak_bytes'] / 2**30:.2f} / {layout['largest_micro_batch'] or '-'}"
    if taken and all(layout[key] == taken[key] for key in ("strategy", "activation_checkpointing")):
        return f"[bold green]* {text}[/bold green]"
    return text if layout["fits"] else f"[dim]{text}[/dim]"


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=bool(first))
    table.add_column(first)
    return table


def _size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"
