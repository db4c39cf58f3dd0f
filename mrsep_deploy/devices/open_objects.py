"""What a device has made and nobody has closed yet, so that closing the device leaves nothing behind."""

from __future__ import annotations

from typing import TypeVar

from mrsep_deploy.devices.interface import Event, Graph, Memory, Stream

Closable = Graph | Stream | Event | Memory
Made = TypeVar("Made", bound=Closable)

# Graphs and streams first: nothing may run any more when events and memory go.
_ORDER = (Graph, Stream, Event, Memory)


class OpenObjects:
    """A set that objects enter when they are made and leave when they are closed."""

    def __init__(self) -> None:
        self._objects: dict[int, Closable] = {}

    def add(self, made: Made) -> Made:
        self._objects[id(made)] = made
        return made

    def remove(self, closed: Closable) -> None:
        self._objects.pop(id(closed), None)

    def streams(self) -> list[Stream]:
        return [each for each in list(self._objects.values()) if isinstance(each, Stream)]

    def memory_bytes(self) -> int:
        return sum(each.size for each in list(self._objects.values()) if isinstance(each, Memory))

    def close_all(self) -> None:
        for kind in _ORDER:
            for each in list(self._objects.values()):
                if isinstance(each, kind):
                    each.close()
