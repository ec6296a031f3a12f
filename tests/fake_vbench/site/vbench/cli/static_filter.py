from pathlib import Path

DEVICE = "cuda"


class StaticFilter:
    def __init__(self, args, device):
        assert args.model and device.type == "cpu"

    def infer(self, path):
        return DEVICE.type == "cpu" and b"static" in Path(path).read_bytes()
