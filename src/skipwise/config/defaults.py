"""Defaults of training, as in the PoSE paper (arXiv 2309.10400, section 4.1)."""

STEPS = 1000
"""Optimizer steps."""

LEARNING_RATE = 2e-5
"""Peak learning rate."""

GLOBAL_BATCH = 64
"""Training windows of a step, over all processes."""

WARMUP_STEPS = 10
"""Steps in which the learning rate rises; a tenth of all steps where that is less."""
