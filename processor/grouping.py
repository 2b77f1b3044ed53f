"""What the rows of `sidecar usage` may stand for. Pure, and light: the command line reads it at every start."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from processor.spend import Cell


class By(StrEnum):
    """How usage is grouped. Counters know no kinds of task: these come from the audit log."""

    DAY = "day"
    MONTH = "month"
    MODEL = "model"
    TENANT = "tenant"
    TASK_TYPE = "task_type"

    @property
    def is_time(self) -> bool:
        return self in {By.DAY, By.MONTH}

    def key(self, cell: Cell) -> str:
        """The row that a counter belongs to. Raises ValueError for what no counter tells."""
        match self:
            case By.DAY:
                return cell.day.isoformat()
            case By.MONTH:
                return cell.day.isoformat()[:7]
            case By.MODEL:
                return cell.model
            case By.TENANT:
                return cell.tenant
            case By.TASK_TYPE:
                raise ValueError("counters know no kinds of task")
