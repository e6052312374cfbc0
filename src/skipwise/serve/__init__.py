"""One model with two modes behind OpenAI's API, for many at once: keys and their limits, fair turns, nothing kept.

requests -> listen (TLS, slow senders) -> gate (keys, sizes, audit) -> app (routes, limits)
         -> backends: the engine in this process under the scheduler's fair turns, or vLLM's servers
"""

from skipwise.serve.app import create_app
from skipwise.serve.audit import AuditLog
from skipwise.serve.backends import Backend, Embedded, Prompts, ServedModel
from skipwise.serve.gate import Bounds
from skipwise.serve.keys import Keyring, Role
from skipwise.serve.listen import Address, Server
from skipwise.serve.scheduler import Scheduler, Turns
from skipwise.serve.vllm import Vllm, VllmSettings

__all__ = [
    "Address",
    "AuditLog",
    "Backend",
    "Bounds",
    "Embedded",
    "Keyring",
    "Prompts",
    "Role",
    "Scheduler",
    "ServedModel",
    "Server",
    "Turns",
    "Vllm",
    "VllmSettings",
    "create_app",
]
