"""The keeper: a process beside the routers that writes what they answer from, and asks what they must not wait for.

1.  :mod:`router.keep.process`      its life: the parts that are configured, started and stopped in order
2.  :mod:`router.keep.link`         a socket at which routers and commands ask its parts
3.  :mod:`router.keep.inbox`        what routers send by their rings
4.  :mod:`router.keep.embeddings`   takes vectors off the rings into the store
    :mod:`router.keep.store`        the store in LMDB: its only writer
    :mod:`router.keep.check`        whether a store found on disk can be trusted
5.  :mod:`router.keep.nearest`      top-k by cosine
    :mod:`router.keep.tables`       the tables that are looked into
6.  :mod:`router.keep.tools`        tools of all sources, published
    :mod:`router.keep.tool_sources` files and MCP servers
    :mod:`router.keep.schemas`      what of them can be published (pure)
    :mod:`router.keep.tool_vectors` their embeddings
7.  :mod:`router.keep.warm`         system prompts, published

No router waits for it: without a keeper new vectors are not kept, and everything else is answered as before.
"""
