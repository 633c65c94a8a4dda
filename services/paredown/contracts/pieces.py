"""How large the pieces are in which the engine works, so that a plan counts with the same figures as the work.

Only what a plan needs is here; what no formula asks for stays in the engine's file that it is of.
"""

# Tokens of one forward pass through a block: enough to keep the cores busy, few enough for small activations.
MICRO_BATCH_TOKENS = 2048
# Positions whose logits exist at once, 200 KB to 1 MB each in float32; and in a backward pass.
HEAD_TOKENS = 128
GRADIENT_HEAD_TOKENS = 512
# Bytes of the hidden states of tasks' requests that exist at once; what is more takes another pass through the blocks.
TASK_STATES_BYTES = 512 * 2**20
# Largest weight file: it is held in memory while it is written.
SHARD_BYTES = 2 * 2**30

# New tokens after each fixed prompt, in which a model shows whether it repeats itself.
GENERATED_TOKENS = 64
# New tokens of a text that proves that a runtime writes.
PROVING_TOKENS = 24

# Tokens of an input's sample: at least so many where there are as many, and less than twice that.
SAMPLED_TOKENS = 128
# What GPTQ's search tries, as multiples of the damping that it was given; that one comes first, and wins a tie.
DAMPING_FACTORS = (1.0, 0.1, 0.3, 3.0, 10.0)
# Rows of a layer on which a scale of AWQ's is judged: at least so many, and less than twice that.
JUDGED_ROWS = 256
# Rows of a layer on which `mixed` tries each choice of bits: those that matter most.
TRIED_ROWS = 128
# Rows on which a search for channels to exchange looks, and how often each group meets another one.
EXCHANGING_ROWS = 256
EXCHANGING_ROUNDS = 12
# Sub-models of Bonsai's that run side by side through a block that was read once.
SUBMODELS_AT_ONCE = 8
