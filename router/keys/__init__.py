"""Keys of clients: what they are, what they allow, and how much of it is used.

:mod:`router.keys.tokens` makes and hashes them, :mod:`router.keys.windows` counts what was used lately,
:mod:`router.keys.account` is one key with what it has used, :mod:`router.keys.registry` finds the one that a client has
shown, :mod:`router.keys.curve` does so for ZeroMQ's own encryption. Loaded only where keys are configured.
"""
