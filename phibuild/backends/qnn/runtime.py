"""An artifact's graphs at work, on the CPU. Generation is onnxruntime-genai's own, by its
genai_config.json."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from phibuild.backends.qnn.genai import CONFIG
from phibuild.backends.qnn.inspect import NPU
from phibuild.backends.qnn.pipeline import Pipeline
from phibuild.backends.qnn.sessions import on_cpu
from phibuild.worker.companions import read_json
from phibuild.worker.interface import Logits, Tokens
from phibuild.worker.json_values import as_ids
from phibuild.worker.protocol import WorkerError
from phibuild.worker.tokenizer_json import TokenizerJson

if TYPE_CHECKING:
    import onnxruntime_genai as og


class QnnRuntime(TokenizerJson):
    """The graphs of an artifact folder. Raises WorkerError for binaries: they open on their chip
    alone."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder)
        if (folder / NPU).is_file():
            raise WorkerError(
                "context binaries open on the Snapdragon that they were made for alone; build "
                "`form: onnx` to run the same graphs here"
            )
        self._threads = threads
        self._pipeline = Pipeline(folder, partial(on_cpu, threads=threads))

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] from an empty cache."""
        self._pipeline.clear()
        return self.extend(ids)

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there."""
        return np.concatenate(list(self._pipeline.feed(ids)))

    def native(self) -> QnnRuntime:
        """Return itself: there is no NPU here."""
        return self

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the greedy continuation of `ids` up to an id that ends generation, by
        onnxruntime-genai."""
        import onnxruntime_genai as og

        config = read_json(self.folder / CONFIG)["model"]
        length = min(len(ids) + max_tokens, config["context_length"])
        if len(ids) >= length:
            raise WorkerError(
                f"the prompt has {len(ids)} tokens, the artifact is made for "
                f"{config['context_length']}"
            )
        parameters = og.GeneratorParams(self._model)
        # The cache is as long as the graphs say; a shorter one would not be taken.
        parameters.set_search_options(max_length=config["context_length"], do_sample=False)
        generator = og.Generator(self._model, parameters)
        generator.append_tokens(np.array(ids, np.int32))
        ends = as_ids(config["eos_token_id"])
        for _ in range(length - len(ids)):
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if token in ends:
                return
            yield token

    @cached_property
    def _model(self) -> og.Model:
        """The graphs in onnxruntime-genai, all on the CPU: by a copy of the configuration without
        providers, beside links to the artifact's files."""
        import onnxruntime_genai as og

        document = read_json(self.folder / CONFIG)
        for entry in document["model"]["decoder"]["pipeline"]:
            for stage in entry.values():
                stage.pop("session_options", None)
        session = document["model"]["decoder"]["session_options"]
        session["intra_op_num_threads"] = self._threads
        with tempfile.TemporaryDirectory(prefix="phibuild-qnn-") as name:
            folder = Path(name)
            for path in self.folder.iterdir():
                if path.name != CONFIG:
                    os.symlink(path.resolve(), folder / path.name)
            (folder / CONFIG).write_text(json.dumps(document), encoding="utf-8")
            return og.Model(str(folder))
