"""`Pipeline`: recordings and questions in, answers per window out.

from NatureLM.infer import Pipeline

pipeline = Pipeline()  # the embedded model; Pipeline("naturelm-audio") is the published one
pipeline(["assets/synthetic_common_cuckoo.flac"], "What is the common name?")
# ['#0.00s - 6.00s#: Common Cuckoo\\n']
"""

from NatureLM.infer.choosing import Choosing
from NatureLM.infer.devices import pick_device
from NatureLM.infer.pipeline import Pipeline
from NatureLM.infer.results import RecordingError, WindowKey, WindowResult

__all__ = ["Choosing", "Pipeline", "RecordingError", "WindowKey", "WindowResult", "pick_device"]
