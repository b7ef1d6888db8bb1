"""`ray start`, bound to 127.0.0.1 alone, in a process that ends with its parent.

Ray's own command turns 127.0.0.1 into the machine's outward address and then listens on all of
them. Only that choice is replaced; everything else is `ray start`. Standard input is a pipe that
nobody writes to: at its end, because the test died, this process's group is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from ray._private import ray_constants, services

assert ray_constants.ENABLE_RAY_CLUSTER  # read before what runs on this node is told otherwise
services.get_node_ip_address = lambda address=None: "127.0.0.1"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def _end_with_parent() -> None:
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    from ray.scripts.scripts import main

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv[0] = "ray"
    sys.exit(main())
