"""`Pipeline`: recordings and questions in, answers per window out.

from NatureLM.infer import Pipeline

pipeline = Pipeline()  # the embedded model; Pipeline("naturelm-audio") is the published one
pipeline(["assets/synthetic_common_cuckoo.flac"], "What is the common name?")
# ['#0.00s - 6.00s#: Common Cuckoo\\n']

`python -m NatureLM.infer` is `naturelm infer`.
"""

from NatureLM.inference.loading import pick_device
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import AskOptions, RecordingError, WindowKey, WindowResult

__all__ = [
    "AskOptions",
    "Pipeline",
    "RecordingError",
    "WindowKey",
    "WindowResult",
    "pick_device",
]

if __name__ == "__main__":
    from NatureLM.cli.main import infer_main

    infer_main()
