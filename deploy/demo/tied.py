"""Becomes a command that ends when the script that started it ends, however that ended.

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
        pass  # not Linux: there a `kill -9` of the script leaves its commands running
    # The script may have died before the line above.
    if os.getppid() != int(parent):
        sys.exit("the script that started this has ended already")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


main()
