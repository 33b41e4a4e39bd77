"""A Python file as a module, by its path: methods and evaluators are scripts in folders that are no packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_script(path: Path) -> ModuleType:
    """Run the file and return it as a module, a new one every time. Whatever the file raises comes through."""
    spec = importlib.util.spec_from_file_location(f"sightrl_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and tyro look up the names in annotations
    spec.loader.exec_module(module)
    return module
