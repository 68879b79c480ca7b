"""Which files to read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


def filter_mm_encoder_only_safetensors_files(
    hf_weights_files: list[str],
    hf_folder: str,
    index_file: str,
    language_model_prefixes: Iterable[str],
    *,
    weights_mapper: object = None,
) -> list[str]:
    weight_map = json.loads((Path(hf_folder) / index_file).read_text())["weight_map"]
    wanted = {file for name, file in weight_map.items() if not name.startswith(tuple(language_model_prefixes))}
    return [path for path in hf_weights_files if Path(path).name in wanted]
