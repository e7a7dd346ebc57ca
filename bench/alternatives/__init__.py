"""What else hands records from one place to another: each can be measured beside the rings by ``python -m bench.ring``.

1. ``peer`` what every one of them can be asked to do, and the pace of a measurement
2. ``in_process`` ``collections.deque`` and ``queue.SimpleQueue``: between threads, a reference changes hands
3. ``processes`` ``multiprocessing.Queue``: between processes, records are pickled into a pipe
4. ``zeromq`` pyzmq over ``inproc`` (threads) and ``ipc`` (processes)
5. ``spin`` a bare word in shared memory that both sides look at all the time: the least that visibility can cost
"""
