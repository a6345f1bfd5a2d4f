"""Who was started by a process that is killed does not go on for nobody."""

import os
import signal
import subprocess
import sys
import textwrap
import time

from jaxlean.run.lease import _state

CHILD = "import os, sys, time; from jaxlean.run.parent import end_with; end_with(int(sys.argv[1])); time.sleep(60)"
PARENT = """
    import os, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
    print(child.pid, flush=True)
    child.wait()
"""


def lives(pid):
    state = _state(pid)
    return state is not None and state[0] not in "ZX"


def test_it_ends_with_a_parent_that_is_killed():
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), CHILD], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    child = int(parent.stdout.readline())
    time.sleep(1.5)
    assert lives(child), "its parent lives"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 30
    while lives(child):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_of_a_parent_that_is_gone_it_ends_at_once():
    code = CHILD.replace("; time.sleep", "; print('began', flush=True); time.sleep")
    nobody = "1" if os.getpid() != 1 else "2"
    ended = subprocess.run([sys.executable, "-c", code, nobody], timeout=30, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "")
