"""The tiny suite of the comparison tests, and workers that are threads."""

import contextlib
import json
import os
import threading

from openwork.lab import worker

TINY = {
    "settings": {
        "digits": {
            "model": "mlp",
            "data": "digits",
            "model_options": {"hidden": [16]},
            "budget": {"epochs": 2, "finetune_epochs": 1, "batch_size": 64, "lr": 0.1, "finetune_lr": 0.05},
        }
    },
    "methods": {"magnitude": None, "gradual": "gradual_magnitude"},
    "densities": [0.5, 0.05],
    "seeds": [0, 1],
    "tune": {"lr": [0.001, 0.2]},
}


class Local:
    """A worker as a thread of this process: the same loop over the same pipes, without seconds of imports."""

    pid = 0

    def __init__(self):
        (ours, self_in), (self_out, theirs) = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(self_in, "wb"), os.fdopen(self_out, "rb")
        source, lines = os.fdopen(ours, "rb"), os.fdopen(theirs, "w", buffering=1)

        def tell(message):
            print(json.dumps(message), file=lines, flush=True)

        threading.Thread(target=worker.serve, args=(source, tell, lines.close), daemon=True).start()

    def give(self, task):
        worker.send(self.stdin, task)

    def messages(self):
        with contextlib.suppress(OSError, ValueError):
            yield from map(json.loads, self.stdout)

    def kill(self):
        self.stdin.close()

    def wait(self):
        for stream in (self.stdin, self.stdout):
            with contextlib.suppress(OSError, ValueError):
                stream.close()
        return 0


def by_key(results):
    return {r["key"]: r for r in results["cells"]}
