"""`bloodcell-dist doctor --json` whose rank 1 fails, dies or hangs when gradients are to be summed."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from bloodcell_dist.cli import main
from bloodcell_dist.doctor import measure, together


def ail(*_: Any) -> None:
    if what == "fails":
        raise RuntimeError("no route to host\nand many lines of C++")
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


what, *options = sys.argv[1:]
if what == "hangs":
    together.MEASURING_S = 5.0
if os.environ["HOROVOD_RANK"] == "1":
    vars(measure)["measure_allreduce"] = ail
sys.exit(main(["doctor", "--json", *options]))
