"""The 13 tasks of RULER (arXiv 2404.06654), generated offline for any tokenizer and length.

evaluate(model, tokenizer, [{"kind": "ruler_niah_single_2", "trials": 20}, "ruler_vt"], [4096, 32768], documents)
"""
