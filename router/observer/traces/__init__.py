"""Traces: what happened to a request, as spans that any tracing system can show.

tool_turns   which request continues an answer that called tools: how long the tools took
"""
