"""The numbers of int8 codes, once for both engines: what docs/contract.md fixes, as in reference/absmax.py and reference/zeropoint.py."""

#: The largest code of absmax, and its steps on either side of zero.
INT8_MAX = 127

#: The codes of zeropoint, and its steps from one end to the other.
CODE_MIN, CODE_MAX = -128, 127
CODE_STEPS = CODE_MAX - CODE_MIN

#: A slice with no magnitude of at least this is treated as zero.
ZERO_SLICE = 2.0**-100
