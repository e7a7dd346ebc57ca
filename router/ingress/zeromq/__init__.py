"""The ZeroMQ ingress: :mod:`.messages` (pure), :mod:`.reply` (one answer, its credit), :mod:`.server` (the socket)."""
