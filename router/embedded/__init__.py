"""What `ringrouter run` is made of: real model hosts, started and watched beside the router.

1. ``hosts``          which hosts there are, their commands, and the Python that runs them
2. ``plan``           what to start and where: configuration, run directory, port
3. ``child``          one supervised program: its process, its log, its back-off
4. ``demonstration``  the request that is sent through the router to show it at work

Programs of the hosts' own environment (``.venv-host``), which has what the router does not need:
``llama_host``, llama.cpp's HTTP server, and ``minilm_to_gguf``, which makes the embedding model's file once.
"""
