"""One model with two modes behind OpenAI's API, for many clients: keys and limits, fair turns, no text kept.

    requests -> listen (TLS, slow senders) -> gate (keys, sizes, audit) -> app (routes, limits)
             -> backends: the engine in this process under the scheduler's fair turns, or
                front: servers of vLLM or llama.cpp, each a `Program`

Import from the modules: `keys` alone loads neither the engine nor the web libraries.
"""
