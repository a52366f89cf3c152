"""An app whose import takes for ever; `ANYSERVE_TEST_GATE` says that it has begun."""

import os
import time
from pathlib import Path

Path(os.environ["ANYSERVE_TEST_GATE"]).write_text(str(os.getpid()))
time.sleep(3600)
