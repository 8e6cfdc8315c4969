"""A page in the browser: upscale a picture, ask a manifest, move the patches of a photograph.

It is the only part of LA-SR that imports both programs, and nothing imports it.
"""
