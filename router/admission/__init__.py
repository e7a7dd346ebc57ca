"""Admission, pure: whether a request may run now, must wait, or is refused, and who of those that wait is next.

:mod:`~router.admission.decision`      run, wait or refuse
:mod:`~router.admission.waiting_room`  classes, deadlines, shares
:mod:`~router.admission.predict`       when the first token would come; loaded with the first deadline
"""

from router.admission.classes import BATCH, CLASS_NAMES, CLASS_NUMBERS, INTERACTIVE, REALTIME, class_name
from router.admission.decision import Admission, admit, is_idle, slots_of
from router.admission.waiting_room import STARVE_EVERY, Turns, WaitingRoom, next_of

__all__ = [
    "BATCH",
    "CLASS_NAMES",
    "CLASS_NUMBERS",
    "INTERACTIVE",
    "REALTIME",
    "STARVE_EVERY",
    "Admission",
    "Turns",
    "WaitingRoom",
    "admit",
    "class_name",
    "is_idle",
    "next_of",
    "slots_of",
]
