"""ringrouter: a single-writer router daemon in front of co-located model hosts.

The path of a request, in order:

1.  :mod:`router.ingress.http`        bytes of a client → a request head and body, bounded;
    :mod:`router.ingress.zeromq`      or messages of a ZeroMQ client
    and :mod:`router.ingress.access`  whose it is, where there are keys (:mod:`router.keys`)
2.  :mod:`router.ingress.server`      which path → :mod:`router.ingress.submission`: which model, a request;
    :mod:`router.ingress.shapes`      or both at once, of requests like earlier ones
3.  :mod:`router.loop`                published into the request ring, drained in the same turn;
    :mod:`router.dispatching`         this and the steps to 8 in one native call, for the usual request
4.  :mod:`router.admission`           run, wait, or refuse (pure)
5.  :mod:`router.routing`             which host (pure); :mod:`router.picking`, the default policy in one step
6.  :mod:`router.outbound`            the request as that host gets it
7.  :mod:`router.hosts.fleet`         a warm connection
8.  :mod:`router.hosts.connection`    bytes out, response head in
9.  :mod:`router.hosts.scanner`       response bytes → events (sans I/O);
    :mod:`router.hosts.foreign`       of other dialects; :mod:`router.hosts.whole`, what whole answers and errors say
10. :mod:`router.attempt`             each read: scanned once, written to the client at once, then recorded
11. :mod:`router.telemetry.writer`    records into shared memory

Beside the path: :mod:`router.refusals` (what gets no host), :mod:`router.recovery` (what comes after a failed attempt),
:mod:`router.clients` (who leave or fall behind), :mod:`router.hosts.standing` (which hosts may get requests),
:mod:`router.hosts.health` (probes), :mod:`router.roster` (hosts and models of a configuration),
:mod:`router.asking` (what routing policies are asked),
:mod:`router.caches` (what is answered without a host), :mod:`router.sharing` (hosts whose slots several routers use),
:mod:`router.watch` (the one timer, and with it :mod:`router.memory`), :mod:`router.wait_strategy` (how the loop waits).

What these pass on and agree about: :mod:`router.request` and its :mod:`router.token_state` (what changes with each
token), :mod:`router.models` with their :mod:`router.retry_budget`, :mod:`router.messages` (bodies of requests),
:mod:`router.levers` (what rules change in them), :mod:`router.tracing` (what hosts are told of traces),
:mod:`router.dialects` (APIs of hosts beyond OpenAI's), :mod:`router.http1` (framing), :mod:`router.stamps`,
:mod:`router.errors` and :mod:`router.verdicts` (what an error means), :mod:`router.native` (code in C, or what stands
in for it), :mod:`router.mould` (objects that begin alike), :mod:`router.answers` (the usual answer in native code,
which :mod:`router.ingress.answering` tells what it goes by).

One process: :mod:`router.daemon` builds and runs it all, of :mod:`router.config` (checked by
:mod:`router.config_schema`, described by :mod:`router.config_reference`; :mod:`router.masking` takes keys out of its
errors); :mod:`router.listeners`, :mod:`router.descriptors`, :mod:`router.ingress.surfaces` (what clients and operators
connect to), :mod:`router.service` (systemd, reloads, upgrades), :mod:`router.log`.

In processes of their own: :mod:`router.cli` (commands), :mod:`router.doctor` (what is wrong with a machine),
:mod:`router.observer` (makes metrics, costs and a journal of the records), :mod:`router.keep` (fills the caches),
:mod:`router.client` (for programs that ask over ZeroMQ), :mod:`router.supervisor` (all of them and real hosts at once,
from :mod:`router.embedded`).
"""

from typing import Final

__version__: Final = "0.1.0"
