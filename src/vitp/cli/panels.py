"""Panels of `vitp --help`, in their order."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

DATA, TRAIN, USE = "Data", "Train", "Use a model"
JUDGE, PLAN = "Judge a model or a run", "Plan and measure"
_ORDER = (DATA, TRAIN, USE, JUDGE, PLAN)


class PanelGroup(TyperGroup):
    """Commands in the order of their panels: typer takes groups such as `vitp data` last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        names = super().list_commands(ctx)
        panels = {name: getattr(self.commands[name], "rich_help_panel", None) for name in names}
        order = [*_ORDER, *(panel for panel in panels.values() if panel not in _ORDER)]
        return sorted(names, key=lambda name: order.index(panels[name]))
