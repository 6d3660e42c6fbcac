"""Runs a command that is terminated when the script that started it ends, for whatever reason.

usage: tied.py PARENT COMMAND [ARGUMENT…]
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main():
    parent, *command = sys.argv[1:]
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except AttributeError:
        pass  # not Linux: if the script is killed with SIGKILL, its commands keep running
    # The script may have ended before the line above.
    if os.getppid() != int(parent):
        sys.exit("the script that started this has already ended")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


main()
