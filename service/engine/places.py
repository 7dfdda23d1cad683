"""Which place of a pool holds which adapter: one for each slot, more for parts of compositions."""


class Places:
    """The first places are those of the slots; `more` follow for parts."""

    def __init__(self, slots: int, more: int) -> None:
        self.total = slots + more
        self._free = list(range(slots, self.total))
        self._place: dict[str, int] = {}  # of a part
        self._users: dict[str, set[int]] = {}  # slots

    def take(self, part: str, slot: int) -> tuple[int, bool]:
        """The place of a part that a slot uses from now on, and whether it is still empty."""
        new = part not in self._place
        if new:
            self._place[part] = self._free.pop()
        self._users.setdefault(part, set()).add(slot)
        return self._place[part], new

    def release(self, slot: int) -> None:
        """A slot uses nothing any more; parts without another user give up their places."""
        for part, users in list(self._users.items()):
            users.discard(slot)
            if not users:
                del self._users[part]
                self._free.append(self._place.pop(part))
