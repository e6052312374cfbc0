"""Long inputs through any model, in bounded memory: prefill in chunks, decoding, and the caches both fill."""
