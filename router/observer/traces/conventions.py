"""Names of attributes, as OpenTelemetry's semantic conventions have them, and our own where they have none; pure.

The ``gen_ai.`` names were read in open-telemetry/semantic-conventions-genai, docs/registry/attributes/gen-ai.md and
docs/gen-ai/gen-ai-spans.md at :data:`GEN_AI_COMMIT` (status: development), the others in
open-telemetry/semantic-conventions at :data:`COMMIT`. They are copied, for the packages of constants mark them as moved
or lack them. Whatever begins with ``ringrouter.`` is ours.
"""

from __future__ import annotations

from typing import Final

GEN_AI_COMMIT: Final = "9f1b0bb4320aba1797371a60f19ab07bad938932"
COMMIT: Final = "c9e48b1d1"

# ---------------------------------------------------------------- gen_ai
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
RESPONSE_MODEL: Final = "gen_ai.response.model"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
"""In seconds."""
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

OPERATIONS: Final = {
    "chat": "chat",
    "completion": "text_completion",
    "embeddings": "embeddings",
    "responses": "chat",
    "messages": "chat",
}
"""``gen_ai.operation.name`` by endpoint; of others the endpoint's own name, which the conventions allow."""
EXECUTE_TOOL: Final = "execute_tool"

# ---------------------------------------------------------------- of all domains
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
HTTP_STATUS: Final = "http.response.status_code"
USER_ID: Final = "user.id"
USER_HASH: Final = "user.hash"
SESSION_ID: Final = "session.id"
CONNECTION_TYPE: Final = "network.connection.type"
CONNECTION_TYPES: Final = frozenset({"wifi", "wired", "cell", "unavailable", "unknown"})
"""Values of the tag ``network_type`` that are also the conventions'."""
FLAG_KEY: Final = "feature_flag.key"
FLAG_VARIANT: Final = "feature_flag.result.variant"
FLAG_EVALUATION: Final = "feature_flag.evaluation"
"""The name of an event."""
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE: Final = "service.instance.id"

# ---------------------------------------------------------------- ours
OWN: Final = "ringrouter."
REQUEST_ID: Final = "ringrouter.request.id"
TAG_NAMES: Final = {
    "request_id": REQUEST_ID,
    "feature_name": "ringrouter.feature",
    "prompt_version": "ringrouter.prompt.version",
    "dataset_id": "ringrouter.dataset.id",
    "channel": "ringrouter.channel",
    "device_type": "ringrouter.device.type",
    "network_type": "ringrouter.network.type",
    "workload_class": "ringrouter.workload.class",
    "node_id": "ringrouter.node.id",
    "realtime": "ringrouter.realtime",
    "batch_id": "ringrouter.batch.id",
    "experiment": "ringrouter.experiment",
    "variant": "ringrouter.variant",
    "session_id": SESSION_ID,
}
"""Names of the built-in tags; the users' own are ``ringrouter.tag.NAME``. ``user_id`` has rules of its own."""
INFERRED: Final = "ringrouter.inferred"
"""True on a span that nobody reported: it follows from what came before and after."""
