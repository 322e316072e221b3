"""Model merging: all arithmetic with α lives here.

`scaling`: α per call and row, while the model runs. `recipe`: what to merge, as YAML. `plan`: a
recipe applied to weights. `fold`: a plan written into a model's weights, and taken back.
"""
