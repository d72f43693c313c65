"""The Chinese edition: prose in blocks beside its originals, short sentences in a catalog, and what keeps both up to date.

    python -m tutorials.translation               # what to do: missing, outdated, orphaned; strings without a translation
    python -m tutorials.translation --skeleton 05_decomposition
    python -m tutorials.translation --strings     # gather the short sentences anew, keep what is translated

Code cells, outputs and figures have one source. Only prose is translated: each Markdown cell of a chapter in `tutorials/zh/NN_name.md`,
each section of a page in `docs/zh/PATH.md`, below a marker with the hash of its original (blocks.py). What is shorter than prose, such
as the labels of a figure or a checker's hint, stands in `tutorials/zh/*.po` (sentences.py).
"""
