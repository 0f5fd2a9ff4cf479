"""The list of settings: the variables that `Settings.from_environ` reads."""

from collections.abc import Iterator, Mapping

from worker.settings import Settings


class _Watched(Mapping[str, str]):
    """An empty environment that remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def setting_names() -> set[str]:
    """Return the names of all variables that are read."""
    environment = _Watched()
    Settings.from_environ(environment)
    return environment.asked
