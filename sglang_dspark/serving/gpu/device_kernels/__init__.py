"""Our kernels in SGLang's DSPARK worker, where they are faster on this device.

`choice.attempt` builds every operation, checks it against its reference, builds all forms that serving can call for,
and times it beside upstream's at the shapes that will be served; `choice.Installed` puts the winners in place, each
with SGLang's own behind it should it raise. Both run before the draft's CUDA graphs are captured; nothing is compiled
later. `cases` knows the four operations; `operations`, `guarded` and `live` import without SGLang, `cases` and
`choice` do not.
"""
