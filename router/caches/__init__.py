"""What the router answers without a host, or adds to a request, from memory. The keeper (``router.keep``) fills it.

1.  :mod:`router.caches.keys`         a request for embeddings → keys of its texts (pure)
2.  :mod:`router.caches.entries`      a vector as it is kept (pure)
3.  :mod:`router.caches.embeddings`   hits answered at once, misses to the hosts
    :mod:`router.caches.calls`        misses of all clients, collected into calls of the hosts
    :mod:`router.caches.memory`       the newest vectors, in the router itself
    :mod:`router.caches.reader`       all others, mapped read-only
    :mod:`router.caches.outbox`       new vectors to the keeper, by a ring
4.  :mod:`router.caches.nearest`      questions that the keeper answers
    :mod:`router.caches.keeper_link`  the router's end of the link to it
    :mod:`router.caches.frames`       its messages (pure)

Loaded only by routers that have it configured.
"""
