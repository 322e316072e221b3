"""Model merging: all arithmetic with α.

`recipe`: what to merge, as YAML. `plan`: a recipe applied to weights. `scaling`: α per call and
row, while the model runs. `fold`: a plan written into a model's weights, and taken back. `lora`:
low-rank updates, and adapters put into a model.
"""
