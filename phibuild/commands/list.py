"""`phibuild list`: what can be named in recipes and overrides."""

from __future__ import annotations

import argparse
import json

from tabulate import tabulate

from phibuild.backends.registry import BACKENDS, backend
from phibuild.commands.common import make_catalogue
from phibuild.errors import EXIT_OK, ConfigError
from phibuild.schema import PRECISIONS
from phibuild.units import format_size

Rows = list[dict[str, str]]


def run(arguments: argparse.Namespace) -> int:
    """Print one kind of thing, with what one needs to choose."""
    catalogue = make_catalogue(arguments)
    rows: Rows = []
    if arguments.what == "recipes":
        for name, file in sorted(catalogue.recipe_files.items()):
            try:
                data = file.data() if not file.check() else None
            except ConfigError:
                data = None
            text = str(data.get("description", "")) if isinstance(data, dict) else "NOT VALID"
            rows.append({"recipe": name, "description": text, "file": file.shown})
    elif arguments.what == "devices":
        for name in sorted(catalogue.device_files):
            device = catalogue.device(name)
            rows.append({
                "device": name, "class": device.device_class, "memory": format_size(device.memory),
                "budget": format_size(device.budget), "context": str(device.context_length),
                "accelerators": ", ".join(device.accelerators), "title": device.title,
            })  # fmt: skip
    elif arguments.what == "models":
        for name in sorted(catalogue.model_files):
            model = catalogue.model(name)
            source = model.repo or "embedded"
            if model.revision:
                source += f"@{model.revision}"
            rows.append(
                {"model": name, "title": model.title, "source": source, "licence": model.license}
            )
    elif arguments.what == "backends":
        for name in BACKENDS:
            spec = backend(name)
            options = ", ".join(spec.options.model_fields)
            rows.append(
                {"backend": name, "format": spec.format, "for": spec.title, "options": options}
            )
    else:
        for precision in PRECISIONS:
            defaults = {name: catalogue.backend_defaults(name).get(precision) for name in BACKENDS}
            row: dict[str, str] = {"precision": precision}
            for name, chosen in defaults.items():
                values = [f"{key}: {value}" for key, value in (chosen or {}).items() if value]
                row[name] = ", ".join(values) or "default"
            rows.append(row)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print(tabulate(rows, headers="keys", disable_numparse=True))
    return EXIT_OK
