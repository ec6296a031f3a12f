"""A stand-in with the interface and the habits of the package `vbench` 0.1.5, without its models.

A clip's score is a hash of dimension and bytes, so that a test can compute it too. FAKE_VBENCH asks for a
fault, "HABIT:DIMENSION", where a habit is "import", "crash", "crash FILE", "nan FILE", "broken", "hang",
"fetch", "lose" or "drift".
"""

import importlib
import json
import os
from pathlib import Path

from .utils import init_submodules


class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device = device
        self.full_info_dir = full_info_dir
        self.output_path = output_path

    def evaluate(self, videos_path, name, prompt_list=(), dimension_list=None, mode="vbench_standard"):
        submodules = init_submodules(dimension_list)
        info = self._info(videos_path, dimension_list, prompt_list, mode)
        info_path = os.path.join(self.output_path, f"{name}_full_info.json")
        Path(info_path).write_text(json.dumps(info))
        results = {}
        for dimension in dimension_list:
            try:
                module = importlib.import_module(f"vbench.{dimension}")
                compute = getattr(module, f"compute_{dimension}")
            except Exception as error:
                raise NotImplementedError(f"UnImplemented dimension {dimension}!, {error}") from error
            results[dimension] = compute(info_path, self.device, submodules[dimension])
        _note({"dimensions": dimension_list, "mode": mode, "device": self.device.type, "info": info})
        Path(self.output_path, f"{name}_eval_results.json").write_text(json.dumps(results))

    def _info(self, videos_path, dimension_list, prompt_list, mode):
        names = os.listdir(videos_path)
        if mode == "custom_input":
            if prompt_list:
                assert set(names) <= set(prompt_list), "prompts missing"
            prompts = prompt_list or {name: name for name in names}
            return [
                {
                    "prompt_en": prompts[name],
                    "dimension": dimension_list,
                    "video_list": [os.path.join(videos_path, name)],
                }
                for name in names
            ]
        # The first file's ending counts for all, and what is missing is only printed.
        ending = Path(names[0]).suffix
        entries = json.loads(Path(self.full_info_dir).read_text())
        for entry in entries:
            wanted = [f"{entry['prompt_en']}-{number}{ending}" for number in range(5)]
            entry["video_list"] = [os.path.join(videos_path, name) for name in wanted if name in names]
        return [entry for entry in entries if set(dimension_list) & set(entry["dimension"])]


def _note(call):
    if "FAKE_LOG" in os.environ:
        call["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        with open(os.environ["FAKE_LOG"], "a") as log:
            log.write(json.dumps(call) + "\n")
