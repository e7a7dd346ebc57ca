"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell starts what runs behind it with the interrupt ignored, and children inherit that: tests that interrupt a
# program would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # likewise behind nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
