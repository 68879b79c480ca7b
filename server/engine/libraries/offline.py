"""Keep the libraries from the network.

Law: import it before transformers, which reads these variables once: no file is ever requested from a Hub.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
