"""The tutorial: twelve percent scripts, the notebooks they are built into, and what they share.

`example.py` is the 4 x 4 example, `checks` checks the exercises, `pictures.py` draws, `model_data.py`
reads real activations, `running_table.py` prints the table that grows from chapter to chapter.

The theatre of the site: `minitriton.py` runs kernels on NumPy alone, `recording.py` notes what they do, `ladder.py` has ten to write,
`inside.py` records what the compiler made of two, `explore.py` quantizes recorded activations.
"""
