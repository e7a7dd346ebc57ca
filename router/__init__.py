"""ringrouter: a single-writer router daemon in front of co-located model hosts.

The path of a request, in order:

1.  :mod:`router.ingress.http`        bytes of a client → a request head and body, bounded;
    :mod:`router.ingress.zeromq`      or messages of a ZeroMQ client
    and :mod:`router.ingress.access`  whose it is, where there are keys (:mod:`router.keys`)
2.  :mod:`router.ingress.server`      which path → :mod:`router.ingress.submission`: which model, a request
3.  :mod:`router.loop`                published into the request ring, drained in the same turn
4.  :mod:`router.admission`           run, wait, or refuse (pure)
5.  :mod:`router.routing`             which host (pure); :mod:`router.picking`, the default policy in one step
6.  :mod:`router.outbound`            the request as that host gets it
7.  :mod:`router.hosts.fleet`         a warm connection
8.  :mod:`router.hosts.connection`    bytes out, response head in
9.  :mod:`router.hosts.scanner`       response bytes → events (sans I/O);
    :mod:`router.hosts.foreign`       of other dialects
10. :mod:`router.attempt`             each read: scanned once, written to the client at once, then recorded
11. :mod:`router.telemetry.writer`    records into shared memory

Beside the path: :mod:`router.recovery` (what comes after a failed attempt), :mod:`router.hosts.standing` (which hosts
may get requests), :mod:`router.roster` (hosts and models of a configuration), :mod:`router.asking` (what routing
policies are asked), :mod:`router.watch` (the one timer), :mod:`router.wait_strategy` (how the loop waits),
:mod:`router.hosts.health` (probes), :mod:`router.ingress.admin` (what operators ask), :mod:`router.daemon` (builds it
all). In processes of their own: :mod:`router.cli` (commands), :mod:`router.observer` (makes metrics, costs and a
journal of those records), :mod:`router.client` (for programs that ask over ZeroMQ).
"""

from typing import Final

__version__: Final = "0.1.0"
