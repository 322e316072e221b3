"""Model merging: all arithmetic with α.

`recipe`: what to merge, as YAML. `plan`: a recipe applied to weights, in memory or in files.
`lora`: α per call and row while the model runs, and adapters put into a model.
"""
