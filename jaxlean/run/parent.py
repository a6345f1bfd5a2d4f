"""A process that ends with the one that started it, however that ends: a kill -9 reaches no children."""

import os
import threading
import time

_LOOK_SECONDS = 1.0


def end_with(parent: int) -> None:
    """End this process, at once, as soon as that one is no longer its parent.

    Args:
        parent: its number. One that has ended already ends this one now.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True, name="parent").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)
