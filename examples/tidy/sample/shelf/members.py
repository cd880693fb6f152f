from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Member:
    name: str
    borrowed: list[str] = field(default_factory=list)

    def may_borrow(self, limit: int = 3) -> bool:
        return len(self.borrowed) < limit
