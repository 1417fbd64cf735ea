"""ONNX models put together by hand: one for every kind of operator, and what their groups must be."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'openwork[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'openwork[onnx]'")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto


class Maker:
    """Nodes and weights in the order they are asked for; every call returns the name of what it made."""

    def __init__(self, opset=18, **inputs):
        self.rng = np.random.default_rng(0)
        self.nodes, self.weights, self.opset = [], [], opset
        self.inputs = [helper.make_tensor_value_info(n, *self.kind(s)) for n, s in inputs.items()]

    @staticmethod
    def kind(shape):
        return (TensorProto.INT64, shape[1:]) if shape[0] == "ids" else (TensorProto.FLOAT, list(shape))

    def add(self, array):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def w(self, *shape):
        return self.add((0.4 * self.rng.standard_normal(shape) + 0.05).astype(np.float32))

    def i(self, *numbers):
        return self.add(np.array(numbers, np.int64))

    def __call__(self, kind, *inputs, n=1, **attributes):
        outputs = [f"v{len(self.nodes)}_{i}" for i in range(n)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs[0] if n == 1 else outputs

    def conv(self, x, i, o, k=3, **attributes):
        return self("Conv", x, self.w(o, i, k, k), self.w(o), pads=[k // 2] * 4, **attributes)

    def head(self, x, n):
        return self("Gemm", self("Flatten", self("GlobalAveragePool", x)), self.w(n, 5), self.w(5))

    def model(self, *outputs):
        graph = helper.make_graph(
            self.nodes, "made", self.inputs, [onnx.ValueInfoProto(name=n) for n in outputs], self.weights
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        for output in model.graph.output:
            open_ends = ["a", "b"] if self.opset > 20 else None
            output.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, open_ends))
        return onnx.shape_inference.infer_shapes(model) if self.opset < 21 else model  # gives the outputs their shapes


IMAGE = ("n", 3, 8, 8)
SEQUENCE = ("n", 5, 12)


def residual(m):
    a = m.conv("x", 3, 8)
    a = m("BatchNormalization", a, m.w(8), m.w(8), m.w(8), m.add(np.full(8, 0.7, np.float32)))
    b = m.conv(m("Relu", m.conv(m("Sigmoid", a), 8, 6)), 6, 8)
    return m.head(m("Relu", m("Add", a, b)), 8)


def squeezed(m):
    y = m("PRelu", m.conv(m.conv("x", 3, 8), 1, 8, group=8), m.w(8, 1, 1))
    s = m("ReduceMean", y, m.i(2, 3), keepdims=1)
    s = m("HardSigmoid", m.conv(m("Clip", m.conv(s, 8, 4, 1), "", m.add(np.float32(6))), 4, 8, 1))
    return m.head(m("Mul", y, s), 8)


def grouped(m):
    return m.head(m("Tanh", m.conv(m("Sigmoid", m.conv("x", 3, 12)), 4, 18, group=3)), 18)


def concatenated(m):
    a, b = m.conv("x", 3, 4), m.conv("x", 3, 6)
    return m.head(m.conv(m("Concat", m("Tanh", a), b, m("Exp", a), axis=1), 14, 7), 7)


def split_by_lengths(m):
    a, b = m("Split", m.conv("x", 3, 10), m.i(4, 6), n=2, axis=1)
    return m.head(m.conv(m("Concat", m("Tanh", b), a, axis=1), 10, 7), 7)


def split_equally(m):
    a, b = m("Split", m.conv("x", 3, 12), n=2, axis=1, num_outputs=2)
    return m.head(m.conv(m("Mul", m("Sigmoid", a), b), 6, 7), 7)


def half_of_a_split(m):
    a, _ = m("Split", m.conv("x", 3, 12), n=2, axis=1, num_outputs=2)
    return m.head(m("Tanh", a), 6)


def sliced(m):
    y = m.conv("x", 3, 16)
    tail = m("Slice", y, m.i(-6), m.i(2**31), m.i(1))
    front = m("Slice", y, m.i(0), m.i(-6), m.i(1), m.i(1))
    return m.head(m("Tanh", m("Add", tail, m.conv(front, 10, 6))), 6)


def middle(m):
    y = m("Slice", m.conv("x", 3, 12), m.i(3, 0), m.i(8, 100), m.i(1, 3))
    return m.head(m("Tanh", y), 5)


def stepped(m):
    y = m.conv("x", 3, 12)
    even = m("Slice", y, m.i(0), m.i(12), m.i(1), m.i(2))
    odd = m("Slice", y, m.i(1), m.i(1000), m.i(1), m.i(2))
    return m.head(m.conv(m("Mul", even, odd), 6, 7), 7)


def reversed_(m):
    y = m.conv("x", 3, 8)
    return m.head(m("Sigmoid", m("Add", y, m("Slice", y, m.i(-1), m.i(-1000), m.i(1), m.i(-1)))), 8)


def shuffled(m):
    y = m("Reshape", m.conv("x", 3, 12), m.i(0, 4, 3, 8, 8))
    y = m("Reshape", m("Transpose", y, perm=[0, 2, 1, 3, 4]), m.i(-1, 12, 8, 8))
    return m.head(m.conv(m("Tanh", y), 12, 7), 7)


def flattened(m):
    y = m("Reshape", m("Relu", m.conv("x", 3, 6)), m.i(0, 384))
    y = m("Relu", m("Gemm", y, m.w(9, 384), m.w(9), transB=1, alpha=0.5))
    return m("Add", m("MatMul", y, m.w(9, 4)), m.w(4))


def upscaled(m):
    y = m("ConvTranspose", m.conv("x", 3, 8), m.w(8, 6, 2, 2), m.w(6), strides=[2, 2])
    y = m(
        "Resize",
        m("Tanh", y),
        "",
        "",
        m("Concat", m("Shape", "x", start=0, end=1), m.i(6, 20, 20), axis=0),
        mode="nearest",
    )
    return m.conv(y, 6, 3)


def depth_to_space(mode):
    return lambda m: m.conv(m("Relu", m("DepthToSpace", m.conv("x", 3, 16), blocksize=2, mode=mode)), 4, 3)


def space_to_depth(m):
    return m.head(m.conv(m("SpaceToDepth", m("Tanh", m.conv("x", 3, 4)), blocksize=2), 16, 7), 7)


def attention(dynamic):
    def made(m):
        def linear(x, i, o):
            return m("Add", m("MatMul", x, m.w(i, o)), m.w(o))

        heads = m.i(0, 5, 6, 4)
        if dynamic:
            length = m("Shape", "x")
            batch = m("Unsqueeze", m("Gather", length, m.add(np.int64(0))), m.i(0))
            steps = m("Unsqueeze", m("Gather", length, m.add(np.int64(1))), m.i(0))
            heads = m("Concat", batch, steps, m.i(6), m.i(4), axis=0)
        q, k, v = (m("Transpose", m("Reshape", linear("x", 12, 24), heads), perm=[0, 2, 1, 3]) for _ in range(3))
        scores = m("Softmax", m("MatMul", m("Mul", q, m.add(np.float32(0.5))), m("Transpose", k, perm=[0, 1, 3, 2])))
        y = m("Transpose", m("MatMul", scores, v), perm=[0, 2, 1, 3])
        joined = m("Concat", batch, steps, m.i(24), axis=0) if dynamic else m.i(0, 0, 24)
        y = m("Add", linear(m("Reshape", y, joined), 24, 12), "x")
        z = m("LayerNormalization", y, m.w(12), m.w(12))
        return m("Add", linear(m("Gelu" if m.opset > 19 else "Relu", linear(z, 12, 20)), 20, 12), y)

    return made


def group_norm_of_torch(m):
    y = m("Reshape", m.conv("x", 3, 12), m.i(0, 4, -1))
    y = m("InstanceNormalization", y, m.add(np.ones(4, np.float32)), m.add(np.zeros(4, np.float32)))
    y = m("Reshape", y, m("Shape", m.nodes[0].output[0]))
    return m.head(m("Sigmoid", m("Mul", y, m.w(12, 1, 1))), 12)


def group_norm(m):
    y = m("GroupNormalization", m.conv("x", 3, 12), m.w(12), m.w(12), num_groups=4)
    return m.head(m("Sigmoid", y), 12)


def recurrent(kind, gates, ways=1):
    def made(m):
        x = m("Transpose", m("MatMul", "x", m.w(12, 9)), perm=[1, 0, 2])
        weights = (m.w(ways, gates * 7, 9), m.w(ways, gates * 7, 7), m.w(ways, 2 * gates * 7))
        way = "bidirectional" if ways == 2 else "forward"
        y, _ = m(kind, x, *weights, n=2, hidden_size=7, direction=way)
        y = m("Reshape", m("Transpose", y, perm=[0, 2, 1, 3]), m.i(0, 0, ways * 7))
        return m("MatMul", m("Sigmoid", y), m.w(ways * 7, 4))

    return made


def padded(m):
    y = m("Pad", m.conv("x", 3, 4), m.i(0, 2, 0, 0, 0, 2, 0, 0))
    return m.head(m("Sigmoid", m("Add", m.conv("x", 3, 8), y)), 8)


def einsummed(m):
    y = m("Sigmoid", m("Einsum", "x", m.w(9, 12), equation="btc,hc->bth"))
    return m("Einsum", y, m.w(4, 9), equation="bth,oh->bto")


def shared(m):
    w, target = m.w(8, 8, 1, 1), m.i(0, 8, 64)
    y = m("Conv", m("Tanh", m("Conv", m.conv("x", 3, 8), w)), w)
    z = m("Reshape", m.conv("x", 3, 8), target)
    return m.head(m("Add", m("Reshape", m("Reshape", y, target), m.i(0, 8, 8, 8)), m("Reshape", z, m.i(0, 8, 8, 8))), 8)


def expanded(m):
    y = m("Sigmoid", m("Expand", m("ReduceMax", m.conv("x", 3, 6), m.i(2, 3)), m.i(1, 6, 8, 8)))
    return m.head(m.conv(m("Where", m("Greater", y, m.add(np.float32(0.5))), y, m("Neg", y)), 6, 7), 7)


def unknown(m):
    y = m.conv("x", 3, 8)
    z = m("LRN", m.conv(y, 8, 6), size=3)
    return m("Add", m.head(m.conv(y, 8, 7), 7), m.head(z, 6))


def chosen(m):
    def branch(scale):
        inner = [helper.make_node("Mul", [hidden, scale], ["chosen"])]
        return helper.make_graph(
            inner, "branch", [], [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)]
        )

    y = m.conv("x", 3, 8)
    hidden = m("Relu", m.conv(y, 8, 6))
    one, two = m.w(6, 1, 1), m.w(6, 1, 1)
    flag = m("Greater", m("ReduceSum", "x", keepdims=0), m.add(np.float32(0)))
    return m.head(m("If", flag, then_branch=branch(one), else_branch=branch(two)), 6)


# name -> (what it computes, shape of x, operator set, sizes of its groups)
MADE = {
    "residual": (residual, IMAGE, 18, [8, 6]),
    "depthwise, squeeze-excite": (squeezed, IMAGE, 18, [8, 4]),
    "grouped": (grouped, IMAGE, 18, [3, 4, 6]),
    "concat with a repeat": (concatenated, IMAGE, 18, [4, 6, 7]),
    "split by lengths": (split_by_lengths, IMAGE, 18, [4, 6, 7]),
    "split equally": (split_equally, IMAGE, 18, [6, 7]),
    "half of a split": (half_of_a_split, IMAGE, 18, [6]),
    "negative slices": (sliced, IMAGE, 18, [10, 6]),
    "the middle of a channel": (middle, IMAGE, 18, [5]),
    "slices with steps": (stepped, IMAGE, 18, [6, 7]),
    "reversed channels": (reversed_, IMAGE, 18, [4]),
    "channel shuffle": (shuffled, IMAGE, 18, [4, 3, 7]),
    "flatten and Gemm": (flattened, IMAGE, 18, [6, 9]),
    "transposed convolution and resize": (upscaled, IMAGE, 18, [8, 6]),
    "depth to space, DCR": (depth_to_space("DCR"), IMAGE, 18, [4]),
    "depth to space, CRD": (depth_to_space("CRD"), IMAGE, 18, [4]),
    "space to depth": (space_to_depth, IMAGE, 18, [4, 7]),
    "attention block": (attention(False), SEQUENCE, 18, [6, 20]),
    "attention with computed sizes": (attention(True), SEQUENCE, 18, [6, 20]),
    "group norm of torch": (group_norm_of_torch, IMAGE, 18, [4]),
    "group norm": (group_norm, IMAGE, 21, [4]),
    "LSTM, both ways": (recurrent("LSTM", 4, 2), SEQUENCE, 18, [9, 7]),
    "GRU": (recurrent("GRU", 3), SEQUENCE, 18, [9, 7]),
    "padded channels": (padded, IMAGE, 18, [4]),
    "einsum": (einsummed, SEQUENCE, 18, [9]),
    "shared weights and targets": (shared, IMAGE, 18, [8]),
    "expanded": (expanded, IMAGE, 18, [6, 7]),
    "an operator without a rule": (unknown, IMAGE, 18, [8, 7]),
    "a branch on data": (chosen, IMAGE, 18, [8]),
}  # fmt: skip


def build(name):
    run, shape, opset, sizes = MADE[name]
    m = Maker(opset, x=shape)
    return m.model(run(m)), sizes
