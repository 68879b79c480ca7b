"""Entry points, loaded once a process; what one of them raises when it is called ends the process."""

from importlib.metadata import entry_points

DEFAULT_PLUGINS_GROUP = "vllm.general_plugins"


def load_general_plugins() -> None:
    for plugin in entry_points(group=DEFAULT_PLUGINS_GROUP):
        plugin.load()()
