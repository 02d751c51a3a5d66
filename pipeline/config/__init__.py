"""Options, presets and recipes, and the stages that a run of them has.

`two_stage` and `recipe` (with `recipe_stages`) list the stages, `inputs` finds what they are given.
"""
