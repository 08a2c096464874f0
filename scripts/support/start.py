"""First import of a command, so that Ctrl-C during the other imports prints no traceback."""

import signal
import sys

# In IPython (%run), Ctrl-C must still stop a cell, not the session. A background process ignores
# SIGINT and must continue to do so.
if signal.getsignal(signal.SIGINT) != signal.SIG_IGN and not hasattr(sys, "ps1"):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
