"""What the router answers without a host, or adds to a request, from memory. The keeper (``router.keep``) fills it.

1.  :mod:`router.caches.keys`         a request for embeddings → keys of its texts (pure)
2.  :mod:`router.caches.entries`      a vector as it is kept (pure)
3.  :mod:`router.caches.embeddings`   hits answered at once, misses to the hosts
    :mod:`router.caches.calls`        misses of all clients, collected into calls of the hosts
    :mod:`router.caches.urgency`      how urgent such a call is (pure)
    :mod:`router.caches.memory`       the newest vectors, in the router itself
    :mod:`router.caches.reader`       all others, mapped read-only
    :mod:`router.caches.outbox`       new vectors to the keeper, by a ring
4.  :mod:`router.caches.nearest`      questions that the keeper answers
    :mod:`router.caches.keeper_link`  the router's end of the link to it
    :mod:`router.caches.frames`       its messages (pure)
5.  :mod:`router.caches.intake`       tools filled in, kept answers given: in front of admission
    :mod:`router.caches.tools`        which tools an entry of a request means (pure)
    :mod:`router.caches.tool_shapes`  tools in the words of other APIs (pure)
    :mod:`router.caches.selecting`    a bounded wait for those nearest to the question, by
    :mod:`router.caches.selection`    their vectors (pure)
    :mod:`router.caches.responses`    whole answers by the hash of what was asked (pure)
    :mod:`router.caches.recording`    how an answer comes into it, and
    :mod:`router.caches.replay`       out of it
6.  :mod:`router.caches.warm`         system prompts sent ahead
    :mod:`router.caches.silent`       the egress of requests that the router makes itself
7.  :mod:`router.caches.published`    what the keeper publishes for all routers

:mod:`router.caches.assembly` builds those that are configured. Loaded only by routers that have it configured.
"""
