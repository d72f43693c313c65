"""What the compiler makes of the kernels, for GPUs that need not be here: read from the machine code (tests/tools/generated_code.py).

The program that compiles runs on its own, because Triton's interpreter, under which this suite runs without a GPU, replaces the
compiler for good. Triton's cache may answer: its key is the source, the options and the compiler, so what it holds is what would come out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from fast.kernels import configurations
from tests.tools import machine_code

ROOT = Path(__file__).resolve().parents[1]
NVIDIA = ("sm_80", "sm_89", "sm_90", "sm_100")
ARCHITECTURES = (*NVIDIA, "gfx942")

#: Bytes of shared memory that one program may have (CUDA C++ Programming Guide, technical specifications by compute capability;
#: CDNA 3 instruction set architecture, section on the local data share).
SHARED = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}

#: Whose assembler fuses on Blackwell what must be rounded twice (`test_the_assembler_of_triton_3_6_...`).
TRITON_3_6 = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
REFUSED = pytest.mark.skipif(TRITON_3_6, reason="the kernels refuse Triton 3.6 on this architecture")
COMPILED = [pytest.param(arch, marks=REFUSED) if arch == "sm_100" else arch for arch in ARCHITECTURES]

Facts = dict[str, Any]


def program(*arguments: str, code: str | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *(["-c", code] if code else ["-m", "tests.tools.generated_code", *arguments])]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def compiled(arch: str, *arguments: str) -> list[Facts]:
    lines = program("--arch", arch, "--jobs", "1", *arguments).splitlines()
    return [json.loads(line) for line in lines]


def read(kernel: Facts, *starts: str) -> int:
    """How many instructions of the kernel start with one of these."""
    return sum(count for name, count in kernel["instructions"].items() if name.startswith(starts))


def check(kernel: Facts) -> None:
    """Every law of this file that applies to the kernel."""
    arch = kernel["arch"]
    assert kernel["stack"] == 0, "registers spill"
    assert kernel["shared"] <= SHARED[arch]
    check_amd(kernel) if arch == "gfx942" else check_nvidia(kernel)


#: One wait for matrix instructions, by how many groups of them are left.
IN_FLIGHT, NONE_LEFT = ({f"WARPGROUP.DEPBAR.LE gsb0, 0x{left}": 1} for left in (1, 0))

PRODUCTS = ("product_kernel", "hopper_product_kernel", "multiply_experts")
DECODES = ("decode_kernel", "decode_experts")
EXPERTS = {"scan_experts", "quantize_experts", "multiply_experts", "decode_experts"}


def multiplies(kernel: Facts) -> bool:
    return kernel["kernel"] in (*PRODUCTS, *DECODES)


def has_outlier_product(kernel: Facts) -> bool:
    """Whether the kernel has an outlier product on 16-bit matrix instructions."""
    signature = kernel["signature"]
    if kernel["kernel"] in ("multiply_experts", "decode_experts"):
        decomposes = signature["listed" if kernel["kernel"] == "multiply_experts" else "threshold"] != "constexpr"
    else:
        decomposes = "outliers.columns" in signature if kernel["kernel"] in PRODUCTS else kernel["constants"]["DETECT"]
    x, float_weight = (signature.get(f"{name}.pointer") for name in ("x", "float_weight"))
    return bool(decomposes) and x in ("*fp16", "*bf16") and float_weight in (None, x)


def check_nvidia(kernel: Facts) -> None:
    # A tile of 64 rows or more has Hopper's own instructions; Triton multiplies int8 by the older ones on sm_100, floats by its own.
    arch, wide = kernel["arch"], kernel["kernel"] in PRODUCTS and kernel["arch"] == "sm_90"
    assert not read(kernel, "LDL", "STL"), "local memory"
    if multiplies(kernel):
        assert read(kernel, "IGMMA" if wide else "IMMA"), "no int8 matrix instruction"
        assert not (wide and read(kernel, "IMMA"))
        floats = read(kernel, "HGMMA") if wide else read(kernel, "HMMA", "UTCHMMA")
        assert bool(floats) == has_outlier_product(kernel), f"{floats} 16-bit matrix instructions"
        assert not read(kernel, "HMMA" if wide else "HGMMA")
    if "ragged" not in kernel["case"]:
        assert read(kernel, "UTMALDG", "LDGSTS.E.BYPASS.128", "LDGSTS.E.BYPASS.LTC128B.128", "LDG.E.128"), "no load of 16 bytes"
        if kernel["kernel"] in PRODUCTS:
            assert bool(read(kernel, "UTMALDG")) == (arch == "sm_90" and "float32" not in kernel["case"] and "64-bit" not in kernel["case"])
            if kernel["signature"].get("outliers.x", "constexpr") != "constexpr":
                assert read(kernel, "LDG.E.128"), "gathered columns in small loads"
        if kernel["kernel"] in ("scan_columns", "scan_experts"):
            assert not read(kernel, "LDG.E.U8", "LDG.E.U16", "LDG.E.S8"), "loads of single entries"
    if wide:
        check_hopper_loop(kernel)
    if kernel["kernel"] in ("quantize_rows", "quantize_experts", *DECODES):
        assert kernel["rounding_sums"] > 0
        assert kernel["fused_rounding"] == 0, "the product with the inverse is fused with the sum that rounds it"
        assert read(kernel, "FCHK"), "the division is not the one that rounds correctly"
    # The division's own code tests its operands by instructions that flush; products must not be flushed.
    assert not read(kernel, "FMUL.FTZ"), "subnormal numbers are flushed"


def check_hopper_loop(kernel: Facts) -> None:
    """The loop over K waits once for its matrix instructions: in Gluon until one group is left, in Triton's own language until none is."""
    loops = [loop for loop in kernel["matrix_loops"] if any(name.startswith("IGMMA") for name in loop)]
    waits = [{name: count for name, count in loop.items() if "DEPBAR" in name} for loop in loops]
    assert waits == [IN_FLIGHT if kernel["kernel"] == "hopper_product_kernel" else NONE_LEFT]


def check_amd(kernel: Facts) -> None:
    if multiplies(kernel):
        assert read(kernel, "v_mfma_i32"), "no int8 matrix instruction"
        assert bool(read(kernel, "v_mfma_f32")) == has_outlier_product(kernel)
    if "ragged" not in kernel["case"]:
        assert read(kernel, "global_load_dwordx4", "buffer_load_dwordx4"), "no load of 16 bytes"


@pytest.mark.parametrize("arch", COMPILED)
def test_the_machine_code_of_every_row_of_the_tables(arch):
    kernels = compiled(arch, "--quick")
    launched = {"scan_columns", "quantize_rows", "product_kernel", "decode_kernel"} | EXPERTS
    assert {kernel["kernel"] for kernel in kernels} == (launched | {"hopper_product_kernel"} if arch == "sm_90" else launched)
    for kernel in kernels:
        try:
            check(kernel)
        except AssertionError as error:
            raise AssertionError(f"{arch}, {kernel['kernel']}, {kernel['case']}: {error}") from error


@pytest.mark.deep
@pytest.mark.parametrize("arch", COMPILED)
def test_the_machine_code_of_every_variant(arch):
    for kernel in compiled(arch):
        try:
            check(kernel)
        except AssertionError as error:
            raise AssertionError(f"{arch}, {kernel['kernel']}, {kernel['case']}: {error}") from error


@pytest.mark.skipif(not TRITON_3_6, reason="this Triton has a newer assembler")
def test_the_assembler_of_triton_3_6_fuses_what_must_be_rounded_twice():
    (kernel,) = (k for k in compiled("sm_100", "--case", "large, absmax") if (k["kernel"], k["case"]) == ("quantize_rows", "large, absmax"))
    assert kernel["fused_rounding"] > 0


@pytest.mark.parametrize(
    ("index", "version", "capability", "served"),
    [
        (100, "3.6.0", (9, 0), "sm_90"), (101, "3.7.1", (10, 0), "sm_100"), (102, "3.10.0", (12, 0), "sm_89"),
        (103, "3.7.0+git1", (8, 9), "sm_89"), (104, "3.6.0", (10, 0), None), (105, "3.6.1+git1", (12, 0), None),
    ],
)  # fmt: skip
def test_an_assembler_that_fuses_is_refused(index, version, capability, served, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", index)  # another one each time: what is known of a device is kept
    if served:
        assert configurations.architecture(device) == served
    else:
        with pytest.raises(RuntimeError, match=f"need Triton 3.7 or newer on compute capability 10.0 or newer, got Triton {version[:3]}"):
            configurations.architecture(device)


def test_a_tensor_descriptor_that_the_launcher_does_not_find_is_seen():
    # Of a signature whose descriptor is the field of a record, Triton's own launcher makes nothing on a GPU.
    code = """
from tests.tools import generated_code as g
maps, tiles = [{"block_size": [128, 128]}], "tensordesc<i8[128, 128]>"
g.unpack({0: tiles, 1: ("*i8", "i32")}, maps)
try: g.unpack({0: ("*i8", tiles), 1: "i32"}, maps)
except AssertionError: print("seen")
"""
    assert program(code=code) == "seen\n"


def test_the_quick_cases_reach_every_row_of_every_table_on_tensors_without_memory():
    # The launchers run on meta tensors: a launch that needed a value from the device, or a wait for it, would raise.
    code = """
import json
from tests.tools import generated_code as g
for arch in g.TARGETS:
    print(json.dumps([arch, [[l.kernel, l.named_constants() | dict(l.options)] for l in g.launches(arch, g.QUICK)]], default=str))
"""
    for arch, launches in map(json.loads, program(code=code).splitlines()):
        products = [row.configuration for row in configurations.PRODUCTS[arch]] + [configurations.GENERAL[arch]]
        decodes = [row.configuration for row in configurations.DECODES[arch]] + [configurations.DECODE_GENERAL]
        launched = {kernel: [] for kernel, _ in launches}
        for kernel, constants in launches:
            launched[kernel].append({name.lower(): value for name, value in constants.items()})
        of_experts = [row.configuration for row in configurations.EXPERT_PRODUCTS[arch]] + [configurations.EXPERT_UNALIGNED[arch]]
        few_tokens = [row.configuration for row in configurations.EXPERT_DECODES[arch]] + [configurations.DECODE_GENERAL]
        tables = {"product_kernel": products, "decode_kernel": decodes, "multiply_experts": of_experts, "decode_experts": few_tokens}
        for kernel, rows in tables.items():
            for row in rows:
                # Of an expert nothing is gathered, and its tiles are not in groups.
                prefixes = ("block_m", "block_n", "block_k") if kernel == "multiply_experts" else ("block", "group")
                named = {name: value for name, value in row._asdict().items() if name.startswith(prefixes)}
                named |= {"num_warps": row.warps, "num_stages": row.stages}
                found = [constants for constants in launched[kernel] if named.items() <= constants.items()]
                if kernel in DECODES:  # its tile has at least so many rows, and it scans so many entries of all rows
                    found = [c for c in found if c["tile_m"] >= row.tile_m and c["scan_k"] * c["rows"] == row.scan]
                assert found, f"{arch}: nothing launches {row}"


def kernel_facts(**changes: Any) -> Facts:
    """What a faultless product kernel of sm_90 looks like, changed."""
    facts = {
        "arch": "sm_90", "case": "large, absmax", "kernel": "product_kernel", "shared": 1000, "stack": 0, "constants": {},
        "signature": {"outliers.columns": "*i32", "outliers.x": "*fp16", "x.pointer": "*fp16", "float_weight": "constexpr"},
        "instructions": {"IGMMA.64x128x32.S8.S8": 8, "HGMMA.64x256x16.F32": 2, "UTMALDG.2D": 8, "LDG.E.128": 2, "FMUL": 3},
        "rounding_sums": 0, "fused_rounding": 0,
        "matrix_loops": [{"IGMMA.64x128x32.S8.S8": 8, "WARPGROUP.DEPBAR.LE gsb0, 0x0": 1}, {"HGMMA.64x256x16.F32": 1}],
    }  # fmt: skip
    instructions = facts["instructions"] | changes.pop("instructions", {})
    return facts | changes | {"instructions": {name: count for name, count in instructions.items() if count}}


#: What turns it into a faultless product of experts, and into decoding.
OF_EXPERTS: Facts = {"kernel": "multiply_experts", "signature": {"listed": "*i32", "x.pointer": "*fp16"}}
FEW_TOKENS: Facts = {
    "kernel": "decode_experts", "signature": {"threshold": "fp32", "x.pointer": "*fp16"}, "rounding_sums": 1,
    "instructions": {"IGMMA.64x128x32.S8.S8": 0, "HGMMA.64x256x16.F32": 0, "IMMA.16832.S8.S8": 8, "HMMA.16816.F32": 2, "FCHK": 1},
}  # fmt: skip

FAULTS = {
    "spills": {"stack": 8},
    "too much shared memory": {"shared": (227 << 10) + 1},
    "local memory": {"instructions": {"LDL.64": 1}},
    "no IGMMA": {"instructions": {"IGMMA.64x128x32.S8.S8": 0}},
    "the older int8 instruction": {"instructions": {"IMMA.16832.S8.S8": 1}},
    "outliers without matrix instruction": {"instructions": {"HGMMA.64x256x16.F32": 0}},
    "a float product without outliers": {"signature": {"outliers": "constexpr", "x.pointer": "*fp16", "float_weight": "constexpr"}},
    "gathered columns in small loads": {"instructions": {"LDG.E.128": 0, "LDG.E.U8": 32}},
    "loads of single bytes": {"instructions": {"UTMALDG.2D": 0, "LDG.E.U8": 8}},
    "no copy engine": {"instructions": {"UTMALDG.2D": 0, "LDG.E.128": 8}},
    "flushing": {"instructions": {"FMUL.FTZ": 1}},
    "fused rounding": {"kernel": "quantize_rows", "rounding_sums": 1, "fused_rounding": 1, "instructions": {"FCHK": 1}},
    "approximate division": {"kernel": "quantize_rows", "rounding_sums": 1},
    "a wait for all in Gluon": {"kernel": "hopper_product_kernel"},
    "a second wait in Gluon": {"kernel": "hopper_product_kernel", "matrix_loops": [{"IGMMA.64x128x32.S8.S8": 8, **IN_FLIGHT, **NONE_LEFT}]},
    "fused rounding of an expert's rows": {
        "kernel": "quantize_experts",
        "rounding_sums": 1,
        "fused_rounding": 1,
        "instructions": {"FCHK": 1},
    },
    "approximate division for few tokens": {**FEW_TOKENS, "instructions": FEW_TOKENS["instructions"] | {"FCHK": 0}},
    "a float product of experts without outliers": {**OF_EXPERTS, "signature": {"listed": "constexpr", "x.pointer": "*fp16"}},
    "outliers of experts without matrix instruction": {**OF_EXPERTS, "instructions": {"HGMMA.64x256x16.F32": 0}},
    "no int8 matrix instruction for few tokens": {**FEW_TOKENS, "instructions": FEW_TOKENS["instructions"] | {"IMMA.16832.S8.S8": 0}},
    "no int8 loop": {"kernel": "hopper_product_kernel", "matrix_loops": [{"HGMMA.64x256x16.F32": 1}]},
}


def test_a_faultless_kernel_passes():
    check(kernel_facts())
    check(kernel_facts(**OF_EXPERTS))
    check(kernel_facts(**FEW_TOKENS))
    loops = [{"IGMMA.64x128x32.S8.S8": 8, **IN_FLIGHT}, {"HGMMA.64x256x16.F32": 1}]
    check(kernel_facts(kernel="hopper_product_kernel", matrix_loops=loops))


SASS = """
        /*0000*/                   IGMMA.64x8x32.S8.S8 R24, gdesc[UR4], RZ ;
        /*0010*/              @!P0 BRA 0x80 ;
        /*0020*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0030*/                   UISETP.NE.AND UP0, UPT, UR8, URZ, UPT ;
        /*0040*/                   BRA.U !UP0, 0x0 ;
        /*0050*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0060*/                   CALL.REL.NOINC 0xa0 ;
        /*0070*/                   EXIT ;
        /*0080*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3 ;
        /*0090*/               @P0 BRA 0x20 ;
        /*00a0*/                   RET.REL.NODEC R6 0x0 ;
        /*00b0*/                   BRA 0xb0;
"""


def test_a_loop_of_machine_code_is_what_comes_back_to_itself():
    lines = machine_code.lines(SASS)
    assert [line.address for line in lines] == list(range(0, 0xC0, 16))
    loops = [[line.address for line in loop] for loop in machine_code.loops(lines)]
    # Out of line and back is in it; what follows, what is called and the padding at the end are not.
    assert loops == [[0, 0x10, 0x20, 0x30, 0x40, 0x80, 0x90], [0xB0]]


def test_what_lies_between_two_instructions_of_a_loop_goes_round_it():
    loop = machine_code.loops(machine_code.lines(SASS))[0]
    assert [line.address for line in machine_code.between(loop, "DEPBAR", "IGMMA")] == [0x30, 0x40]
    assert [line.address for line in machine_code.between(loop, "IGMMA", "DEPBAR")] == [0x10]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_machine_code_is_seen(fault):
    with pytest.raises(AssertionError):
        check(kernel_facts(**FAULTS[fault]))
