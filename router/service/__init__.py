"""The router as a service: what it says to systemd and takes from it, and how one process hands over to the next.

::

    notify      datagrams to the service manager: ready, status, watchdog, reload, stop
    pulse       what is told each second, by the loop's own tick
    inherited   listening sockets from systemd, or from the process before this one
    handover    an upgrade: starting the next process with the sockets of this one
    succession  the processes before and after this one, and what each is told
    changeover  reloads and upgrades, one behind another
    journal     log messages as fields of the systemd journal
    units       the unit files that come with the package, made fit for this installation
    install     a plan of what an installation changes, shown and then done

Nothing here is needed to serve: without ``$NOTIFY_SOCKET``, ``$LISTEN_FDS`` and ``$JOURNAL_STREAM`` a router does what
it does in a terminal.
"""
