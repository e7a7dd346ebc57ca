"""The observer: what every token's time was spent on, sliced any way a team asks.

A process of its own that maps the router's segments read-only; it may die and start again at any time.

The map, in the order in which a request passes:

    follow     RUN/*/*/: every instance and generation, read to its end and never twice; what was lost, exactly
    life       one generation: its rings and tables, and what its death leaves behind
    positions  how far we have come, for the next life of the observer
    assemble   ``tokens.ring`` in numpy batches: gaps and stalls of each request, in bounded memory
    batch      what one look brings: rows, gaps, losses
    rows       one wide, flat row per request, pure: the unit that everything below works with
    catalogue  every metric: name, unit, who counts, how it is read off a row, the names it is exported under
    slices     which slices a request counts in: declared ones, capped; the busiest values of tags without bound
    aggregate  all that is counted: ``hist`` log-linear histograms, ``windows`` by time, ``totals`` since the start
    cost       each request's share of its hosts' time (``occupancy``, ``sharing``, ``in_flight``) or price (``prices``)
    journal    rows on disk: ``segments`` of lines, ``parquet`` by the hour; ``query`` and ``report`` read them
    traces     what happened to each request, as spans; which are kept, their export, finding one by its id
    slo        objectives: good and bad counted exactly, burn rates, budget; over kills
    view       the numbers of one stretch of time; ``prometheus`` the text of ``/metrics``; ``hist_files`` .hlog, .hgrm
    pipeline   all of these, one turn at a time; ``process`` turns it; ``web`` answers over HTTP with a ``state``
"""
