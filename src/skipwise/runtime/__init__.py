"""Long inputs through any model, in bounded memory.

session.py        a model and its cache: `prefill` in chunks, then `step` by step; the one caller of models with caches
chunks.py         how many tokens one pass has, and how many positions get their logits at a time
caches.py         kinds of cache, and the bytes that one takes
room_cache.py     a cache with room for tokens to come
attention.py      attention of chunks without a mask, on a CPU
length_rope.py    RoPE that follows the input's length, and the lengths at which LongRoPE changes
forward.py        scores
decode.py         greedy answers in batches, and the tokens that end one
peak.py           the most memory in use
thread.py         a thread for work before a server's own computes
_transformers.py  what has no public name in transformers and torch
"""
