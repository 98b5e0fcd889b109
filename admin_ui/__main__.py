"""``python -m admin_ui CONFIG``: the process that a server starts. CONFIG is JSON and holds no key."""

from __future__ import annotations

import asyncio
import logging
import sys

from admin_ui.config import UiConfig
from admin_ui.serving import serve
from mooring.errors import MooringError
from mooring.parent import die_with_parent

__all__ = ["main"]


def main() -> None:
    """Serves until the server that started it ends."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    config, parent = UiConfig.from_json(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    try:
        asyncio.run(serve(config, lambda ui, url: print(url, flush=True)))
    except MooringError as error:
        print(error.message, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
