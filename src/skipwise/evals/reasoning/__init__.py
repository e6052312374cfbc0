"""Tasks that needles do not cover: what is asked cannot be found by looking for the question's words.

    evaluate(model, tokenizer, ["reasoning_walks", {"kind": "reasoning_chains", "trials": 50}], [4096], documents)

Facts and wording are our own and generated offline, so figures cannot be compared with published ones.
"""
