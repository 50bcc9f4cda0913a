#!/usr/bin/env python3
"""Writes the corpus that the tests of the GGUF reader read.

    pip install gguf==0.19.0 numpy
    python3 tests/gguf/make_corpus.py

`valid/` and `split/` are written by gguf-py, the reference for what a
canonical file is. `hostile/` is assembled byte by byte: no writer makes it.
"""

import pathlib
import shutil
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFEndian, GGUFValueType as T, GGUFWriter

CORPUS = pathlib.Path(__file__).parent / "corpus"


def fresh(name):
    directory = CORPUS / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


# Files of gguf-py.


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def all_metadata(writer):
    writer.add_uint8("kv.u8", 200)
    writer.add_int8("kv.i8", -100)
    writer.add_uint16("kv.u16", 60000)
    writer.add_int16("kv.i16", -30000)
    writer.add_uint32("kv.u32", 4000000000)
    writer.add_int32("kv.i32", -2000000000)
    writer.add_uint64("kv.u64", 2**64 - 1)
    writer.add_int64("kv.i64", -(2**63))
    writer.add_float32("kv.f32", 1.5)
    writer.add_float64("kv.f64", -2.25)
    writer.add_bool("kv.bool", True)
    writer.add_string("kv.string", "grüße")
    writer.add_array("kv.strings", ["a", "", "bc"])
    writer.add_array("kv.ints", [1, -2, 3])
    writer.add_array("kv.bools", [True, False])
    writer.add_key_value("kv.u16s", [1, 2, 65535], T.ARRAY, sub_type=T.UINT16)
    writer.add_array("kv.nested", [[1, 2], [3], [4, 5, 6]])
    writer.add_array("kv.nested_strings", [[["x"], ["y", "z"]]])


def write_valid(directory, version, endian):
    gguf.gguf_writer.GGUF_VERSION = version
    name = f"v{version}-{'be' if endian == GGUFEndian.BIG else 'le'}"
    writer = GGUFWriter(directory / f"{name}.gguf", "test", endianess=endian)
    all_metadata(writer)
    writer.add_tensor("f32", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("q8_0", np.arange(68, dtype=np.uint8).reshape(2, 34), raw_dtype=Q.Q8_0)
    writer.add_tensor("i16", np.arange(3, dtype=np.int16))
    close(writer)
    gguf.gguf_writer.GGUF_VERSION = 3


def write_types(directory):
    """One block of every type whose size gguf-py knows.

    Of Q8_1 it has 40 bytes, where ggml's struct has had 36 since its scale and
    sum became halves.
    """
    sizes = {dtype: size for dtype, size in gguf.GGML_QUANT_SIZES.items() if dtype != Q.Q8_1}
    writer = GGUFWriter(directory / "types.gguf", "test")
    writer.add_custom_alignment(8)
    for dtype, (block, size) in sizes.items():
        writer.add_tensor_info(dtype.name, (block,), np.dtype(np.int8), size, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, size in sizes.values():
        writer.write_tensor_data(np.full(size, size % 251, dtype=np.uint8))
    writer.close()


def write_split(directory):
    writer = GGUFWriter(directory / "model.gguf", "test", split_max_tensors=2)
    for index in range(5):
        writer.add_tensor(f"t{index}", np.full((2, 3), index, dtype=np.float32))
    close(writer)


# Files of no writer.

U32_MAX, U64_MAX = 2**32 - 1, 2**64 - 1


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


def string(value):
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data)) + data


def kv(key, value_type, value):
    return string(key) + u32(value_type) + value


def array(element_type, count, elements=b""):
    return u32(element_type) + u64(count) + elements


def tensor(name, dims=(8,), dtype=Q.F32, offset=0):
    return string(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(dtype) + u64(offset)


def file(kvs=(), tensors=(), data=b"", version=3, kv_count=None, tensor_count=None, align=32):
    kv_count = len(kvs) if kv_count is None else kv_count
    tensor_count = len(tensors) if tensor_count is None else tensor_count
    head = b"GGUF" + u32(version) + u64(tensor_count) + u64(kv_count)
    head += b"".join(kvs) + b"".join(tensors)
    return head + bytes(-len(head) % align) + data


def nested(depth):
    value = array(T.UINT8, 1, b"\7")
    for _ in range(depth - 1):
        value = array(T.ARRAY, 1, value)
    return value


DATA = bytes(range(64))
ONE = kv("one", T.UINT32, u32(1))

HOSTILE = {
    # The header.
    "header-cut": b"GGUF\3\0\0\0\0\0\0\0",
    "magic": b"GGML" + file()[4:],
    "version-0": file(version=0),
    "version-4": file(version=4),
    "version-4-big-endian": file(version=0x04000000),
    "key-count-huge": file(kv_count=U64_MAX),
    "key-count-one-too-many": file(kvs=[ONE], kv_count=2, align=1),
    "tensor-count-huge": file(tensor_count=U64_MAX),
    "tensor-count-one-too-many": file(tensors=[tensor("t")], tensor_count=2, align=1),
    # Metadata.
    "key-length-huge": file(kvs=[u64(U64_MAX) + ONE[8:]]),
    "key-not-utf8": file(kvs=[kv(b"\xff\xfe", T.UINT32, u32(1))]),
    "key-empty": file(kvs=[kv("", T.UINT32, u32(1))]),
    "key-duplicate": file(kvs=[ONE, kv("two", T.UINT8, b"\2"), ONE]),
    "value-type-13": file(kvs=[kv("k", 13, u64(0))]),
    "value-cut": file(kvs=[kv("k", T.UINT64, u32(0))], align=1),
    "bool-2": file(kvs=[kv("k", T.BOOL, b"\2")]),
    "bool-2-in-array": file(kvs=[kv("k", T.ARRAY, array(T.BOOL, 3, b"\0\1\2"))]),
    "string-length-huge": file(kvs=[kv("k", T.STRING, u64(2**63) + b"abc")]),
    "array-count-huge": file(kvs=[kv("k", T.ARRAY, array(T.UINT8, U64_MAX))]),
    "array-count-wraps": file(kvs=[kv("k", T.ARRAY, array(T.UINT64, 2**61 + 1, u64(0)))]),
    "array-type-13": file(kvs=[kv("k", T.ARRAY, array(13, 0))]),
    "array-of-strings-cut": file(kvs=[kv("k", T.ARRAY, array(T.STRING, 2, string("ab") + u64(99)))]),
    "array-depth-9": file(kvs=[kv("k", T.ARRAY, nested(9))]),
    "array-depth-60": file(kvs=[kv("k", T.ARRAY, nested(60))]),
    "alignment-0": file(kvs=[kv("general.alignment", T.UINT32, u32(0))]),
    "alignment-48": file(kvs=[kv("general.alignment", T.UINT32, u32(48))]),
    "alignment-u64": file(kvs=[kv("general.alignment", T.UINT64, u64(32))]),
    # Tensors.
    "tensor-name-length-huge": file(tensors=[u64(2**40) + tensor("t")[8:]], data=DATA),
    "tensor-name-not-utf8": file(tensors=[tensor(b"\xed\xa0\x80")], data=DATA),
    "tensor-duplicate": file(tensors=[tensor("t"), tensor("t", offset=32)], data=DATA),
    "dims-5": file(tensors=[tensor("t", dims=(1, 1, 1, 1, 1))], data=DATA),
    "dims-4-billion": file(tensors=[string("t") + u32(U32_MAX) + bytes(64)], data=DATA),
    "dims-product-wraps": file(tensors=[tensor("t", dims=(2**32, 2**32))], data=DATA),
    "dims-product-wraps-with-0": file(tensors=[tensor("t", dims=(0, 2**40, 2**40))], data=DATA),
    "dims-bytes-wrap": file(tensors=[tensor("t", dims=(2**62,), dtype=Q.F64)], data=DATA),
    "row-partial-block": file(tensors=[tensor("t", dims=(48, 2), dtype=Q.Q4_0)], data=DATA),
    "scalar-partial-block": file(tensors=[tensor("t", dims=(), dtype=Q.Q4_0)], data=DATA),
    "offset-misaligned": file(tensors=[tensor("t", offset=16)], data=DATA),
    "offset-outside": file(tensors=[tensor("t", offset=64)], data=DATA),
    "offset-wraps": file(tensors=[tensor("t", offset=2**64 - 32)], data=DATA),
    "data-cut": file(tensors=[tensor("t"), tensor("u", offset=32)], data=DATA[:-1]),
    "data-padding-cut": file(tensors=[tensor("t", dims=(0,))], align=1),
    "overlap": file(tensors=[tensor("u", offset=32), tensor("t", dims=(9,))], data=DATA),
    "overlap-same-offset": file(tensors=[tensor("t"), tensor("u")], data=DATA),
    "overlap-unknown-type": file(tensors=[tensor("t", dims=(16,)), tensor("u", dtype=99, offset=32)], data=DATA),
    "type-unknown-offset-outside": file(tensors=[tensor("t", dtype=99, offset=64)], data=DATA),
    "type-unknown-misaligned": file(tensors=[tensor("t", dtype=99, offset=1)], data=DATA),
    "type-unknown-dims-wrap": file(tensors=[tensor("t", dims=(2**63,), dtype=99)], data=DATA),
    # These open: only the tensor of the unknown type is an error.
    "type-99": file(tensors=[tensor("t", dtype=99), tensor("u", offset=32)], data=DATA),
    "type-removed": file(tensors=[tensor("t", dtype=4), tensor("u", offset=32)], data=DATA),
}


def main():
    valid = fresh("valid")
    for version in (2, 3):
        for endian in (GGUFEndian.LITTLE, GGUFEndian.BIG):
            write_valid(valid, version, endian)
    write_types(valid)
    (valid / "empty.gguf").write_bytes(file())
    (valid / "array-depth-8.gguf").write_bytes(file(kvs=[kv("k", T.ARRAY, nested(8))]))
    (valid / "dims-0.gguf").write_bytes(
        file(tensors=[tensor("none", dims=(32, 0), dtype=Q.Q4_0), tensor("t")], data=DATA[:32])
    )
    (valid / "scalar.gguf").write_bytes(
        file(tensors=[tensor("t", dims=())], data=DATA[:4] + bytes(28))
    )
    (valid / "string-not-utf8.gguf").write_bytes(file(kvs=[kv("k", T.STRING, string(b"\xc3\x28"))]))
    (valid / "array-of-strings-not-utf8.gguf").write_bytes(
        file(kvs=[kv("k", T.ARRAY, array(T.STRING, 1, string(b"\x80")))])
    )
    write_split(fresh("split"))
    hostile = fresh("hostile")
    for name, data in HOSTILE.items():
        (hostile / f"{name}.gguf").write_bytes(data)


main()
