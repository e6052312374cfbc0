"""Long inputs through any model, in bounded memory.

session.py      a model and its cache: `prefill` in chunks, then `step` by step; the one place that calls a model so
chunks.py       how many tokens one pass has, and how many positions get their logits at a time
caches.py       kinds of cache, and what one takes
room_cache.py   a cache whose tensors are made once
attention.py    attention of chunks without a mask, on a CPU
length_rope.py  RoPE that follows the input's length, and where LongRoPE's answers cross
forward.py      scores
decode.py       greedy answers in batches, and the tokens that end one
peak.py         the most memory in use
"""
