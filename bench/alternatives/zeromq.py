"""pyzmq: PUSH to PULL, a batch is one message with the bytes of its records."""

from __future__ import annotations

from pathlib import Path

import zmq

from bench.alternatives.peer import RECORD_BYTES, Peer, each_ns, rounds_ns


class _ZeroMQ(Peer):
    """The producer binds, the consumer connects; ``RECORD_BYTES`` of bytes stand for a record."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None  # a context does not survive a fork

    def _url(self, way: str) -> str:
        raise NotImplementedError

    def _open(self, kind: int) -> zmq.Socket[bytes]:
        if self._context is None:
            self._context = zmq.Context()
        return self._context.socket(kind)

    def publish_ns(self, count: int) -> float:
        push, pull = self._open(zmq.PUSH), self._open(zmq.PULL)
        push.sndhwm = pull.rcvhwm = 0
        push.bind(self._url("publish"))
        pull.connect(self._url("publish"))
        record = bytes(RECORD_BYTES)
        push.send(record)
        pull.recv()  # connected
        taken_ns = each_ns(lambda: push.send(record), count)
        for _ in range(count):
            pull.recv()
        push.close()
        pull.close()
        return taken_ns

    def open_consumer(self) -> None:
        self._in, self._out = self._open(zmq.PULL), self._open(zmq.PUSH)
        self._in.connect(self._url("there"))
        self._out.connect(self._url("back"))
        self._out.send(b"connected")

    def open_producer(self) -> None:
        self._push, self._pull = self._open(zmq.PUSH), self._open(zmq.PULL)
        self._push.bind(self._url("there"))
        self._pull.bind(self._url("back"))
        self._pull.recv()

    def send(self, count: int, batch: int) -> None:
        send, message = self._push.send, bytes(batch * RECORD_BYTES)
        for _ in range(count // batch):
            send(message)

    def receive(self, count: int, batch: int) -> None:
        receive, size = self._in.recv, batch * RECORD_BYTES
        for _ in range(count // batch):
            assert len(receive()) == size

    def ask(self, count: int) -> list[int]:
        record = bytes(RECORD_BYTES)
        return rounds_ns(lambda: self._push.send(record), self._pull.recv, count)

    def answer(self, count: int) -> None:
        for _ in range(count):
            self._out.send(self._in.recv())

    def close_consumer(self) -> None:
        self._in.close()
        self._out.close()
        if self._context is not None and not self.is_threaded:
            self._context.term()  # waits until the last answer has gone out

    def close(self) -> None:
        if hasattr(self, "_push"):
            self._push.close(linger=0)
            self._pull.close()
        if self._context is not None:
            self._context.term()


class ZeroMQInproc(_ZeroMQ):
    """Between threads."""

    name = "pyzmq inproc"
    is_threaded = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._context = zmq.Context()

    def _url(self, way: str) -> str:
        return f"inproc://{way}"


class ZeroMQIpc(_ZeroMQ):
    """Between processes."""

    name = "pyzmq ipc"

    def _url(self, way: str) -> str:
        return f"ipc://{self.directory}/{way}"
