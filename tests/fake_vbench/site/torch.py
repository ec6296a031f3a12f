"""As much of torch as VBench's worker touches."""

import os


class device:
    def __init__(self, name):
        self.type = name


class cuda:
    @staticmethod
    def device_count():
        return int(os.environ.get("FAKE_GPUS", "0"))


def load(path, map_location=None):
    return path
