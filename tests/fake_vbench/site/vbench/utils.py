import os
import subprocess

CACHE_DIR = os.environ.get("VBENCH_CACHE_DIR", "")


def fault(dimension):
    """The fault that FAKE_VBENCH asks for in this dimension, or ""."""
    habit, _, place = os.environ.get("FAKE_VBENCH", "").partition(":")
    return habit if place == dimension else ""


def init_submodules(dimensions):
    for dimension in dimensions:
        if fault(dimension) == "fetch":
            url, folder = os.environ["FAKE_URL"], os.path.join(CACHE_DIR, "weights")
            path = os.path.join(folder, os.path.basename(url))
            if not os.path.isfile(path):
                subprocess.run(["wget", url, "-P", folder])  # not checked, as in places of the original
            print(open(path).read())
    return {dimension: {"model": "weights.pth"} for dimension in dimensions}
