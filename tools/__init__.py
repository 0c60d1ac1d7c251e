"""What people look through.

plots.py         loss curve, reconstructions, contact sheet of views
demo.py          the whole journey on a small set
demo_images.py   the set: textured shapes on cluttered backgrounds
"""
