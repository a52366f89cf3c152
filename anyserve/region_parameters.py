"""The parameters by which a tensor says that it lies in a client's shared memory, as in Triton.

They are apart so that a replica, which passes tensors on as bytes, needs no numpy for them.
"""

REGION = "shared_memory_region"
"""The name of the region."""
BYTE_SIZE = "shared_memory_byte_size"
"""How many bytes of it the tensor has."""
OFFSET = "shared_memory_offset"
"""Where in the region they begin, in bytes; 0 where it is missing."""
