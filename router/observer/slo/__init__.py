"""Service level objectives: which share of requests was good, how fast the budget burns, and what is left of it.

The map, in the order in which a request passes:

    objectives  one objective, compiled: does it count a row, in which group, and was the row good? pure
    cells       good and bad by time: cells of 10 s, two minutes and an hour for each group, in bounded memory; pure
    groups      which groups there are, capped; pure
    burn        burn rates, state, budget and time to exhaustion of one group, from its sums; pure
    book        all objectives: counts rows exactly once, evaluates, and can be written down; pure
    store       the book on disk, replaced as a whole, in a thread
    accounts    book, store and journal together: what survives a kill, and how; the pipeline's side
    status      what is told: the answer of ``/slo.json``; ``findings`` of alerts; ``readings`` of ``/metrics``
"""
