"""The parts of an ONNX file, read and cut without the `onnx` package: an output of several computes only what it needs."""

from collections.abc import Iterator

# Numbers of fields in onnx.proto (IR version 10), which never change.
GRAPH, METADATA = 7, 14  # of ModelProto
NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO = 1, 5, 11, 12, 13  # of GraphProto
READS, WRITES = 1, 2  # of NodeProto
TENSOR_NAME, VALUE_NAME = 8, 1  # of TensorProto, of ValueInfoProto


def metadata(model: bytes) -> dict[str, str]:
    """The properties of a file."""
    pairs = ({number: value.decode() for number, value, _ in fields(entry)} for entry in values(model, METADATA))
    return {pair[1]: pair[2] for pair in pairs}


def outputs(model: bytes) -> list[str]:
    """The names of the outputs."""
    (graph,) = values(model, GRAPH)
    return [name_of(value, VALUE_NAME) for value in values(graph, OUTPUT)]


def cut(model: bytes, output: str) -> bytes:
    """The file with that output only, the nodes and numbers that it needs, and the inputs that they read."""
    (graph,) = values(model, GRAPH)
    nodes = [(set(names(node, READS)), set(names(node, WRITES)), node) for node in values(graph, NODE)]
    needed, kept = {output}, []
    for reads, writes, node in reversed(nodes):  # a file lists a node after those that it reads from
        if writes & needed:
            needed |= reads
            kept.append(node)
    named = {INITIALIZER: TENSOR_NAME, INPUT: VALUE_NAME, OUTPUT: VALUE_NAME}
    parts = [packed(NODE, node) for node in reversed(kept)]
    for number, value, raw in fields(graph):
        if number in named:
            name = name_of(value, named[number])
            if name == output if number == OUTPUT else name in needed:
                parts.append(raw)
        elif number not in (NODE, VALUE_INFO):
            parts.append(raw)
    whole = packed(GRAPH, b"".join(parts))
    return b"".join(whole if number == GRAPH else raw for number, _, raw in fields(model))


def fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Each field of a protobuf message: its number, its content, and the bytes of both."""
    place = 0
    while place < len(message):
        start = place
        key, place = varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 2:
            length, place = varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            length = varint(message, place)[1] - place
        value = message[place : place + length]
        place += length
        yield number, value, message[start:place]


def values(message: bytes, number: int) -> list[bytes]:
    """The contents of all fields of that number."""
    return [value for found, value, _ in fields(message) if found == number]


def names(message: bytes, number: int) -> list[str]:
    return [value.decode() for value in values(message, number) if value]


def name_of(message: bytes, number: int) -> str:
    return values(message, number)[0].decode()


def packed(number: int, value: bytes) -> bytes:
    """A field of that number and content."""
    return encoded(number << 3 | 2) + encoded(len(value)) + value


def varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, and the place behind it."""
    value, shift = 0, 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def encoded(value: int) -> bytes:
    """A number as `varint` reads it."""
    done = bytearray()
    while value >= 0x80:
        done.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*done, value])
