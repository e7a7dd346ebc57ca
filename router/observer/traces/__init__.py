"""Traces: what happened to each request, as spans that any tracing system can show (docs/traces.md).

tool_turns    which request continues an answer that called tools: how long the tools took
conventions   names of attributes, at a pinned commit of OpenTelemetry's
spans         a row's spans, pure: the same row, the same ids
sampling      which traces are kept, at their beginning and at their end
kept          those of the last hour, in memory, by their ids
exporter      the thread that sends them, by ``otlp``; ``spool`` holds what waits on disk
book          all of these, for the observer's turn
find          requests by id in the journal and the rings; ``page`` what is told of them
"""
