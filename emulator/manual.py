"""Where NVIDIA's manual defines what the emulator does: section numbers of the *PTX ISA*, version 9.0 (CUDA 13.0).

Numbers change between versions, titles seldom. An older PTX, such as Triton's, is described by a newer manual as well. Rules name chapter
and instruction (`rules.py`); their numbers stand here once, taken from the manual's table of contents.
"""

VERSION = "9.0"
#: Chapter -> its number, and those of its sections by what they describe.
CHAPTERS: dict[str, tuple[str, dict[str, str]]] = {
    "Integer Arithmetic Instructions": ("9.7.1", {
        "add": "1", "sub": "2", "mul": "3", "mad": "4", "sad": "7", "div": "8", "rem": "9", "abs": "10", "neg": "11", "min": "12",
        "max": "13", "popc": "14", "clz": "15", "bfind": "16", "brev": "18", "bfe": "19", "bfi": "20", "dp4a": "23",
    }),
    "Floating-Point Instructions": ("9.7.3", {
        "copysign": "2", "add": "3", "sub": "4", "mul": "5", "fma": "6", "div": "8", "abs": "9", "neg": "10", "min": "11", "max": "12",
        "rcp": "13", "sqrt": "15", "rsqrt": "16", "sin": "18", "cos": "19", "lg2": "20", "ex2": "21", "tanh": "22",
    }),
    "Half Precision Floating-Point Instructions": ("9.7.4", {
        "add": "1", "sub": "2", "mul": "3", "fma": "4", "neg": "5", "abs": "6", "min": "7", "max": "8",
    }),
    "Mixed Precision Floating-Point Instructions": ("9.7.5", {"add": "1", "sub": "2"}),
    "Comparison and Selection Instructions": ("9.7.6", {"setp": "2", "selp": "3"}),
    "Logic and Shift Instructions": ("9.7.8", {
        "and": "1", "or": "2", "xor": "3", "not": "4", "lop3": "6", "shf": "7", "shl": "8", "shr": "9",
    }),
    "Data Movement and Conversion Instructions": ("9.7.9", {
        "mov": "3", "shfl.sync": "6", "prmt": "7", "ld": "8", "ld.global.nc": "9", "st": "11", "prefetch": "15", "createpolicy": "18",
        "cvta": "20", "cvt": "21", "cp.async": "25", "cp.async.commit_group": "25", "cp.async.wait_group": "25", "cp.async.wait_all": "25",
        "cp.async.bulk.tensor": "25.5.2", "cp.async.bulk.commit_group": "25", "cp.async.bulk.wait_group": "25",
    }),
    "Control Flow Instructions": ("9.7.12", {"bra": "3", "ret": "6", "exit": "7"}),
    "Parallel Synchronization and Communication Instructions": ("9.7.13", {
        "bar": "1", "bar.warp.sync": "2", "membar": "4", "fence": "4", "fence.proxy": "4", "atom": "5", "red": "6", "vote.sync": "9",
        "match.sync": "10", "activemask": "11", "redux.sync": "12", "griddepcontrol": "13", "elect.sync": "14", "mbarrier": "15",
    }),
    "Warp Level Matrix Multiply-Accumulate Instructions": ("9.7.14", {"mma": "5", "ldmatrix": "5", "stmatrix": "5"}),
    "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions": ("9.7.15", {
        "wgmma.mma_async": "5.2", "wgmma.fence": "7", "wgmma.commit_group": "7", "wgmma.wait_group": "7",
    }),
    "TensorCore 5th Generation Family Instructions": ("9.7.16", {
        "tcgen05.alloc": "7", "tcgen05.dealloc": "7", "tcgen05.relinquish_alloc_permit": "7", "tcgen05.ld": "8", "tcgen05.st": "8",
        "tcgen05.wait": "8", "tcgen05.mma": "10", "tcgen05.fence": "11", "tcgen05.commit": "12",
    }),
    "Miscellaneous Instructions": ("9.7.19", {"nanosleep": "2"}),
}  # fmt: skip


def numbers(section: str) -> list[str]:
    """The section numbers of what a rule names: "chapter: instruction, instruction (remark)", several chapters apart by "; ".

    Raises:
        KeyError: the manual's table of contents has no such chapter, or the chapter no such section.
    """
    found = []
    for part in section.split("; "):
        chapter, _, named = part.partition(": ")
        number, sections = CHAPTERS[chapter]
        for name in named.partition(" (")[0].split(", "):
            # mbarrier.init is described under mbarrier.
            known = name if name in sections else name.partition(".")[0]
            found.append(f"{number}.{sections[known]}")
    return list(dict.fromkeys(found))
