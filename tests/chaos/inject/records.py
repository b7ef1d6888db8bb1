"""The layout of a flight's record, for both sides."""

import struct

RECORD = struct.Struct("<qqqqddd")
"""First step, last step, last saved step, most steps between two that were saved; monotonic seconds
of the first, the last and the last saved one."""
