"""Halve the size of a bundle: store its weights as float16, compute in float32 as before.

    python examples/shrink_bundle.py NAME.bundle

Every large float32 constant becomes a float16 one with a Cast behind it, which engines fold away
when they load the graph. The rounding (2^-11 of each weight) is the same in the forward and the
backward graph, so the gradient stays that of the function. Calibrate afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from unblemish.bundle import Bundle, update_bundle
from unblemish.export.sharing.share_weights import FILE_NAME
from unblemish.export.sharing.shared_files import shared_files
from unblemish.onnx_files import read_onnx

_SMALL = 256  # elements: below this nothing is gained
_LARGEST_HALF = float(np.finfo(np.float16).max)


def store_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` whose large float32 initialisers are stored as float16."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    casts = []
    for tensor in small.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALL:
            continue
        values = numpy_helper.to_array(tensor)
        if not np.abs(values).max() < _LARGEST_HALF:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *small.graph.node]
    del small.graph.node[:]
    small.graph.node.extend(nodes)
    onnx.checker.check_model(small)
    return small


def shrink(bundle: Bundle) -> Bundle:
    """Shrink every graph of `bundle` in place."""
    names = [graph.file for graph in bundle.manifest.graphs.values()]
    small = {name: store_half(read_onnx(bundle.file(name))) for name in names}
    shared = [name for name in bundle.manifest.files if Path(name).name == FILE_NAME]
    return update_bundle(bundle, files=shared_files(small), drop=shared)


def main() -> None:
    """Read the argument and shrink."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    bundle = Bundle.open(parser.parse_args().bundle)
    before = sum(record.bytes for record in bundle.manifest.files.values())
    after = sum(record.bytes for record in shrink(bundle).manifest.files.values())
    print(f"{before / 1e6:.2f} MB -> {after / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
